"""The network: foundation, experts, router, heads, and MLESAM that puts them together."""
