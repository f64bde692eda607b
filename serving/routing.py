"""From the `model` of a request to a version: `support`, `support@champion`, `support@2`. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from schemas.events import ModelStateChanged
from serving.errors import not_found


def parse_model(requested: str) -> tuple[str, str]:
    """(name, version or alias); the alias is `champion` where none is given."""
    name, _, alias = requested.partition("@")
    return name, alias or "champion"


def resolve(requested: str, models: set[str], states: Mapping[str, ModelStateChanged]) -> tuple[str, int]:
    """(model, version) to answer with; version 0 is the base. Raises `ApiError` 404."""
    name, alias = parse_model(requested)
    if name not in models:
        known = ", ".join(sorted(models))
        raise not_found(f"the model {requested!r} does not exist; known: {known}", "model", "model_not_found")
    state = states.get(name)
    if alias == "champion":
        return name, state.champion if state else 0
    versions = [0] + [entry.version for entry in (state.versions if state else [])]
    if alias in map(str, versions):
        return name, int(alias)
    have = ", ".join(f"{name}@{version}" for version in versions)
    message = f"{name} has no version {alias!r}; there are {have} and {name}@champion"
    raise not_found(message, "model", "model_not_found")
