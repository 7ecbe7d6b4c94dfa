"""What holds of every foundation, as a class of statements that each family's tests inherit.

``Contract`` is about the foundation itself, ``FullContract`` adds what is slow, ``ModelContract`` is about a model built on it as
well.
"""

from __future__ import annotations

import copy
import pickle
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from mlesam import MLESAM, Batch, ModelConfig, Sample
from mlesam.errors import DataError
from mlesam.model.experts import LATERAL, Experts, Segment, plain
from mlesam.model.foundation import FAMILIES, LEVEL_STRIDES, PROJECTIONS, Foundation, Loaded, load_foundation
from mlesam.model.heads import MaskHead
from mlesam.model.run import load_weights, save_weights
from test_mlesam import CLASSES, train_two_steps

SHAPES = {"square": (2, 2), "wide": (1, 3), "tall": (3, 1), "smallest": (1, 1)}
"""Heights and widths in strides of the foundation."""
SENSORS = {"rgb": 3, "depth": 1}


def close(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> bool:
    """Whether maps are equal within a share of the largest value, where that is above 1."""
    pairs = zip(ours, theirs, strict=True)
    return all(float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max())) for a, b in pairs)


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


class Contract:
    """The foundation itself. ``name`` is what ``model.foundation`` would be."""

    family: str
    name: str
    shapes: tuple[str, ...] = tuple(SHAPES)
    rank = 2

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "shape" in metafunc.fixturenames:
            metafunc.parametrize("shape", self.shapes)

    @pytest.fixture(scope="class")
    @classmethod
    def where(cls, tmp_path_factory: pytest.TempPathFactory) -> str:
        return cls.name

    @pytest.fixture(scope="class")
    @classmethod
    def loaded(cls, where: str) -> Loaded:
        """The foundation with every weight moved: a tensor that starts at zero or one would not be missed."""
        loaded = load_foundation(where, seed=3)
        draw = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for parameter in loaded.foundation.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.02)
        return loaded

    @pytest.fixture
    def foundation(self, loaded: Loaded) -> Foundation:
        return loaded.foundation

    def images(self, foundation: Foundation, rows: int = 2, shape: str = "wide") -> Tensor:
        height, width = (side * foundation.stride for side in SHAPES[shape])
        return torch.randn(rows, 3, height, width, generator=torch.Generator().manual_seed(5))

    def experts(self, foundation: Foundation, *modalities: str, fresh: bool = False) -> Experts:
        torch.manual_seed(1)
        config = ModelConfig(rank=self.rank, targets=("q", "k", "v", "proj", "mlp"))
        experts = Experts(modalities, foundation.projections, config)
        for name, parameter in experts.named_parameters():
            if name.endswith(".b") and not fresh:
                nn.init.normal_(parameter, std=0.1)
        return experts

    # ------------------------------------------------------------ what it gives

    @torch.no_grad()
    def test_it_gives_three_maps_of_one_width(self, foundation: Foundation, shape: str) -> None:
        images = self.images(foundation, 1, shape)
        height, width = images.shape[-2:]
        maps = foundation(images)
        assert [tuple(m.shape) for m in maps] == [(1, foundation.width, height // s, width // s) for s in LEVEL_STRIDES]
        assert all(m.isfinite().all() and m.std() > 1e-3 for m in maps)

    def test_it_says_what_it_is(self, foundation: Foundation) -> None:
        assert foundation.family == self.family
        assert self.family in FAMILIES
        assert foundation.source
        assert foundation.stride % max(LEVEL_STRIDES) == 0
        assert foundation.tile % foundation.stride == 0

    @torch.no_grad()
    def test_its_decoder_and_what_goes_with_it_have_its_width(self, loaded: Loaded) -> None:
        foundation, width = loaded.foundation, loaded.foundation.width
        assert foundation.no_memory.shape == foundation.no_mask.shape == (1, width, 1, 1)
        assert foundation.position.shape == (2, width // 2)
        head = MaskHead(loaded.decoder, 3)
        assert head(foundation(self.images(foundation, 1)), foundation).shape[1] == 3

    def test_only_what_is_added_can_be_trained(self, foundation: Foundation) -> None:
        for name, parameter in foundation.named_parameters():
            assert parameter.requires_grad == foundation.adds(name), name
        assert {name.split(".")[0] for name in foundation.state_dict() if foundation.adds(name)} == {*foundation.added}
        assert any(not foundation.adds(name) for name in foundation.state_dict())

    @torch.no_grad()
    @pytest.mark.parametrize("stage", range(5))
    def test_a_pass_whose_rows_are_all_left_behind_ends_there(self, foundation: Foundation, stage: int) -> None:
        offered: list[int] = []

        def project(index: int, *others: Any) -> Sequence[Tensor]:
            offered.append(index)
            return plain(index, *others)

        images = self.images(foundation, 2, next(iter(self.shapes)))
        assert foundation(images, project, lambda n, x: (slice(0), x[:0]) if n == stage else None) == []
        ended = len(offered)
        foundation(images, project, lambda n, x: (slice(None), x) if n == stage else None)
        assert bool(ended) == (stage > 0)
        assert offered[:ended] == offered[ended : 2 * ended]
        assert len(offered) >= 2 * ended + 4, "the blocks behind, and the pyramid"

    # ------------------------------------------------------------ its projections

    @torch.no_grad()
    def test_each_projection_is_offered_once_with_its_widths(self, foundation: Foundation, shape: str) -> None:
        offered: Counter[tuple[int, str]] = Counter()
        rows = 3

        def project(
            index: int, names: Sequence[str], x: Tensor, weight: Tensor, bias: Tensor | None
        ) -> Sequence[Tensor]:
            results = plain(index, names, x, weight, bias)
            assert len(x) >= rows
            assert len(x) % rows == 0
            offered.update((index, name) for name in names)
            if names == (LATERAL,):
                mine = foundation.lateral(index - foundation.depth)
                assert equal([weight, bias], list(mine))
                return results
            assert names in foundation.fused
            assert torch.equal(weight, torch.cat([foundation.weight(index, name) for name in names]))
            for name, y in zip(names, results, strict=True):
                assert (x.shape[-1], y.shape[-1]) == foundation.projections[index][name]
            return results

        images = self.images(foundation, rows, shape)
        assert equal(foundation(images, project), foundation(images))
        blocks = Counter((i, name) for i in range(foundation.depth) for name in PROJECTIONS)
        assert offered == blocks + Counter((foundation.depth + stage, LATERAL) for stage in range(4))

    @torch.no_grad()
    def test_an_expert_acts_on_its_own_rows_alone(self, foundation: Foundation, shape: str) -> None:
        images = self.images(foundation, 3, shape)
        experts = self.experts(foundation, "depth", "rgb")
        for parameter in experts.of("rgb").parameters():
            parameter.zero_()
        maps = foundation(images, experts.on((Segment("rgb", 0, 2), Segment("depth", 2, 3))))
        frozen = foundation(images)
        alone = foundation(images[2:], experts.on((Segment("depth", 0, 1),)))
        assert equal([m[:2] for m in maps], [m[:2] for m in frozen])
        assert close([m[2:] for m in maps], alone, 1e-5)
        assert not close([m[2:] for m in maps], [m[2:] for m in frozen], 1e-2), "the expert must change something"

    @torch.no_grad()
    def test_no_row_depends_on_another(self, foundation: Foundation) -> None:
        images = self.images(foundation, 3)
        maps = foundation(images)
        order = torch.tensor([2, 0])
        assert close(foundation(images[order]), [m[order] for m in maps], 1e-6)
        broken = images.clone()
        broken[1] = torch.nan
        assert close([m[order] for m in foundation(broken)], [m[order] for m in maps], 1e-6)

    @pytest.mark.parametrize("projection", PROJECTIONS)
    @torch.no_grad()
    def test_writing_into_a_weight_changes_the_maps(self, foundation: Foundation, projection: str) -> None:
        images = self.images(foundation)
        before = foundation(images)
        weight = foundation.weight(foundation.depth // 2, projection)
        kept = weight.clone()
        weight *= 1.5
        assert not equal(foundation(images), before)
        foundation.weight(foundation.depth // 2, projection).copy_(kept)
        assert equal(foundation(images), before)

    def test_gradients_reach_every_expert_through_it(self, foundation: Foundation) -> None:
        experts = self.experts(foundation, "rgb")
        update = experts.on((Segment("rgb", 0, 1),))
        # A random weighing: the mean of a map behind a norm would be the same for all.
        torch.manual_seed(6)
        sum(
            (m * torch.randn_like(m)).sum() for m in foundation(self.images(foundation, 1, "square"), update)
        ).backward()
        for name, parameter in experts.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
        assert not [n for n, p in foundation.named_parameters() if p.grad is not None and not foundation.adds(n)]
        foundation.zero_grad(set_to_none=True)

    def test_blocks_computed_again_give_the_same_gradients_and_keep_less(self, foundation: Foundation) -> None:
        experts, images = self.experts(foundation, "rgb", "depth"), self.images(foundation, 2, "square")
        segments, found = (Segment("rgb", 0, 1), Segment("depth", 1, 2)), []
        for foundation.checkpointing in (False, True):
            kept = 0

            def count(tensor: Tensor) -> Tensor:
                nonlocal kept
                kept += tensor.numel()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
                maps = foundation(images, experts.on(segments))
            sum((m * m.detach().cos()).sum() for m in maps).backward()
            found.append((kept, {n: p.grad.clone() for n, p in experts.named_parameters() if p.grad is not None}))
            experts.zero_grad()
            foundation.zero_grad(set_to_none=True)
        foundation.checkpointing = False
        (plainly, one), (again, two) = found
        assert again < plainly / 2
        assert one.keys() == two.keys()
        assert one
        assert all(torch.allclose(one[n], two[n], rtol=1e-4, atol=1e-5 * float(one[n].abs().max())) for n in one)

    @torch.no_grad()
    def test_threads_do_not_meet_and_an_error_leaves_nothing_behind(self, foundation: Foundation) -> None:
        images = self.images(foundation, 1, "smallest")
        experts = self.experts(foundation, "rgb", "depth")
        updates = [experts.on((Segment(m, 0, 1),)) for m in ("rgb", "depth")]
        wanted = [foundation(images, update) for update in updates] + [foundation(images)]
        meet, found = threading.Barrier(2, timeout=60), [[], []]

        def run(which: int) -> None:
            def project(*arguments: Any) -> Sequence[Tensor]:
                meet.wait()  # both passes are at the same projection
                return updates[which](*arguments)

            with torch.no_grad():
                found[which] = foundation(images, project)

        threads = [threading.Thread(target=run, args=(which,)) for which in range(2)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert equal(found[0], wanted[0])
        assert equal(found[1], wanted[1])

        def refuse(*arguments: object) -> Sequence[Tensor]:
            raise KeyError("an expert that fails")

        with pytest.raises(KeyError):
            foundation(images, refuse)
        assert equal(foundation(images), wanted[2])


class FullContract(Contract):
    """What costs too much memory and time on a large foundation."""

    def test_the_hash_notices_the_weights_and_nothing_that_is_added(self, foundation: Foundation) -> None:
        before = foundation.sha256
        assert foundation.sha256 == before
        state = foundation.state_dict()
        own = [name for name in state if not foundation.adds(name)]
        for name in {own[0], own[-1], *(n for n in state if foundation.adds(n))}:
            number = state[name].view(-1)[:1]
            kept = number.clone()
            number += 1
            assert (foundation.sha256 == before) == foundation.adds(name), name
            number.copy_(kept)
        assert foundation.sha256 == before

    @torch.no_grad()
    def test_a_copy_and_a_pickle_give_the_same(self, foundation: Foundation) -> None:
        images = self.images(foundation)
        update = self.experts(foundation, "rgb").on((Segment("rgb", 0, 2),))
        for other in (copy.deepcopy(foundation), pickle.loads(pickle.dumps(foundation))):
            assert equal(other(images, update), foundation(images, update))


class ModelContract(FullContract):
    """A model on this foundation."""

    def model(self, where: str, trained: bool = True, **config) -> MLESAM:
        torch.manual_seed(7)
        model = MLESAM(
            SENSORS, CLASSES, ModelConfig(**{"foundation": where, "rank": self.rank, **config}), seed=3
        ).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if trained and parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        return model

    def given(self, size: tuple[int, int] = (64, 96)) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(8)
        return {m: torch.randn(2, c, *size, generator=draw) for m, c in SENSORS.items()}

    @torch.no_grad()
    def test_a_fresh_model_sees_what_the_foundation_sees_bit_for_bit(self, where: str) -> None:
        model = self.model(where, trained=False)
        given = self.given()
        stacked = torch.cat([given["rgb"], model.stems["depth"](given["depth"])])
        assert [s.modality for s in model.encode(Batch.of(given)).segments] == ["rgb", "depth"]
        assert equal(list(model.encode(Batch.of(given)).levels), model.foundation(stacked))

    @torch.no_grad()
    def test_a_training_sees_what_a_test_sees(self, where: str) -> None:
        model, given = self.model(where), Batch.of(self.given())
        before = model.encode(given).levels
        assert equal(list(model.train().encode(given).levels), list(before))

    @torch.no_grad()
    def test_merged_experts_give_the_same_and_come_out_again(self, where: str) -> None:
        model = self.model(where, targets=("q", "k", "v", "proj", "mlp"))
        both = Batch.of(self.given())
        mixed = Batch.stack([Sample({m: x[0] for m, x in both.images.items()}), Sample({"rgb": both.images["rgb"][1]})])
        weights = {n: t.clone() for n, t in model.state_dict().items()}
        for given in (both, both.select(["depth"]), mixed):
            before = model.unmerge().encode(given).levels
            merged = model.merge().encode(given).levels
            assert close(list(merged), list(before), 1e-5)
            frozen = torch.cat([model.stems[m](x) if m in model.stems else x for m, x in given.images.items()])
            assert not close(model.foundation(frozen), list(before), 1e-3), "the experts must change something"
        assert model.state_dict().keys() == weights.keys()
        assert all(torch.equal(t, weights[n]) for n, t in model.state_dict().items())

    @torch.no_grad()
    def test_an_absent_sensor_is_absent_and_a_mixed_batch_equals_its_frames(self, where: str) -> None:
        model, given = self.model(where), self.given()
        first = Sample({m: x[0] for m, x in given.items()}, id="both")
        second = Sample({"depth": given["depth"][1]}, id="depth alone")
        together = model(Batch.stack([first, second]))
        for index, sample in enumerate((first, second)):
            alone = model(Batch.stack([sample]))
            assert close([together.logits[index : index + 1]], [alone.logits], 1e-5)
            assert close([together.shares[index : index + 1]], [alone.shares], 1e-5)
        assert not together.shares[1, :, model.modalities.index("rgb")].any()

    @pytest.mark.parametrize("size", [(31, 70), (1, 1), (64, 33)])
    @torch.no_grad()
    def test_logits_come_back_at_any_size(self, where: str, size: tuple[int, int]) -> None:
        output = self.model(where)(self.given(size))
        assert output.logits.shape == (2, CLASSES, *size)
        assert output.logits.isfinite().all()

    def test_training_moves_all_but_the_weights_and_they_come_back_from_a_file(
        self, where: str, tmp_path: Path
    ) -> None:
        model = self.model(where, trained=False)
        for module in model.mask_head.modules():  # the small weights of `transformers` make all tokens one
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding)):
                module.reset_parameters()
        before = {n: t.double() for n, t in model.state_dict().items()}
        trainable = {n for n, p in model.named_parameters() if p.requires_grad}
        assert {n for n in trainable if n.startswith("foundation.")} == {
            f"foundation.{n}" for n, _ in model.foundation.named_parameters() if model.foundation.adds(n)
        }
        moved, _ = train_two_steps(model, self.given((64, 64)))
        keys = {n for n in trainable if n.endswith(".k_proj.bias")}  # which no softmax sees
        assert moved == trainable - keys
        model.float().eval()
        after = model.state_dict()
        assert all(torch.equal(after[n].double(), t) for n, t in before.items() if n not in trainable)

        path = tmp_path / "model.safetensors"
        save_weights(model, path, {})
        with safe_open(path, framework="pt") as file:
            saved = set(file.keys())
        assert saved >= trainable
        assert all(model.foundation.adds(n.removeprefix("foundation.")) for n in saved if n.startswith("foundation."))
        torch.manual_seed(99)
        other = MLESAM(SENSORS, CLASSES, ModelConfig(foundation=where, rank=self.rank), seed=3)
        load_weights(other, path)
        assert all(torch.equal(t, other.state_dict()[n]) for n, t in after.items())
        with torch.no_grad():
            assert torch.equal(other.eval()(self.given()).logits, model(self.given()).logits)
        other.foundation_sha256 = "another"
        with pytest.raises(DataError, match="was trained on another foundation than"):
            load_weights(other, path)

    def test_training_one_sensor_leaves_all_else_as_it_was(self, where: str) -> None:
        model = self.model(where).train_only(["depth"])
        before = {n: t.double() for n, t in model.state_dict().items()}
        moved, _ = train_two_steps(model, self.given((64, 64)))
        assert moved
        own = set(model.own_names("depth"))
        assert {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])} <= own
        assert moved <= own
