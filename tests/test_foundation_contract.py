"""Every foundation keeps the contract: SAM2's presets, and a Swin."""

from __future__ import annotations

import pytest

from foundation_contract import Contract, FullContract, ModelContract
from test_swin import save_swin


class TestNano(ModelContract):
    family, name = "sam2", "nano"


class TestTiny(ModelContract):
    family, name = "sam2", "tiny"


class TestSmall(FullContract):
    family, name = "sam2", "small"


class TestBasePlus(Contract):
    family, name = "sam2", "base_plus"
    shapes = ("square", "wide")


class TestLarge(Contract):
    family, name = "sam2", "large"
    shapes = ("wide",)


class TestSwin(ModelContract):
    family = "swin"

    @pytest.fixture(scope="class")
    @classmethod
    def where(cls, tmp_path_factory: pytest.TempPathFactory) -> str:
        return str(save_swin(tmp_path_factory.mktemp("swin") / "swin"))


class TestSwinWithAbsolutePositions(FullContract):
    family = "swin"

    @pytest.fixture(scope="class")
    @classmethod
    def where(cls, tmp_path_factory: pytest.TempPathFactory) -> str:
        folder = tmp_path_factory.mktemp("swin") / "absolute"
        return str(save_swin(folder, use_absolute_embeddings=True, window_size=7))
