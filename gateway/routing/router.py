"""From the model a client names to the candidates that can answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.errors import ModelNotFound
from gateway.providers.provider import Provider


@dataclass(frozen=True, slots=True)
class Candidate:
    """One upstream model that can answer for a public one.

    Attributes:
        provider: Where it is served.
        model: Its name there.
        priority: Lower is asked first.
        weight: Share among equals, above 0.
    """

    provider: Provider
    model: str
    priority: int = 0
    weight: float = 1.0


class Router:
    """Knows the candidates of every public model.

    Args:
        models: Public name to candidates.
    """

    def __init__(self, models: Mapping[str, Sequence[Candidate]]) -> None:
        self._models = {
            name: tuple(sorted(candidates, key=lambda one: one.priority))
            for name, candidates in models.items()
        }

    @property
    def models(self) -> Sequence[str]:
        """Public names, in the order of the configuration."""
        return tuple(self._models)

    def candidates(self, model: str) -> Sequence[Candidate]:
        """Who can answer, in order of preference.

        Raises:
            ModelNotFound: The name is not configured.
        """
        try:
            return self._models[model]
        except KeyError:
            raise ModelNotFound(param="model") from None
