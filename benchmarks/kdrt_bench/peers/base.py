"""What a peer has to do: make engines of networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrt.bundle import Bundle
from kdrt_bench.errors import BenchmarkError, PeerUnavailableError
from kdrt_bench.jobs import BenchJob, Forward, ImageWorkload, Model, Workload
from kdrt_bench.runners import Runner, caller, generator, needed
from kdrt_bench.stages import StageClock, TimedEngine, timed
from kdrt_engines import Engine
from kdrt_engines.spec import EngineSpec

if TYPE_CHECKING:
    from kdrt.pipeline.pipeline import Pipeline


class Peer(ABC):
    """A way to run networks.

    Args:
        job: what this process was started for.
        bundle: the model's bundle, for its facts; only kdrt runs its networks.
        options: the peer's own.
    """

    packages: tuple[str, ...] = ("torch", "diffusers", "transformers")
    """Distributions whose versions belong beside a figure."""

    def __init__(self, job: BenchJob, bundle: Bundle, options: Mapping[str, str]) -> None:
        self.bundle = bundle
        self.model: Model = job.model
        self.threads = job.threads
        self.options = dict(options)
        self._loaded: dict[str, Engine] = {}
        self._pipeline: Pipeline | None = None
        self._timed: Mapping[str, TimedEngine] = {}

    @abstractmethod
    def engine(self, component: str) -> Engine:
        """Load a component."""

    @abstractmethod
    def settings(self) -> dict[str, str]:
        """How it was run, for people to judge whether that was fair."""

    def prepare(self, components: Sequence[str]) -> None:
        """Make what :meth:`engine` reads, in the model's cache, unless it is there. Runs in a
        process of its own, so that what it takes is not counted."""
        return

    def load(self, component: str) -> Engine:
        """A component, loaded once."""
        if component not in self._loaded:
            self._loaded[component] = self.engine(component)
        return self._loaded[component]

    def generator(self, workload: ImageWorkload, clock: StageClock) -> Runner:
        """What makes the images of a workload: kdrt's pipeline on this peer's engines."""
        if self._pipeline is None:
            from kdrt.pipeline.pipeline import Pipeline

            self._timed = timed({name: self.load(name) for name in needed(self.bundle)}, clock)
            self._pipeline = Pipeline(self.bundle, self._timed, **self.pipeline_options())
        return generator(self._pipeline, self._timed["unet"], workload)

    def pipeline_options(self) -> dict[str, Any]:
        """Further arguments of :class:`kdrt.pipeline.pipeline.Pipeline`."""
        return {}

    def caller(self, workload: Forward, clock: StageClock) -> Runner:
        """What calls a network."""
        return caller(timed({workload.component: self.load(workload.component)}, clock), workload)

    def spec(self, component: str) -> EngineSpec:
        """Inputs and outputs of a component.

        Raises:
            BenchmarkError: the bundle has no such component.
        """
        components = self.bundle.manifest.components
        if component not in components:
            raise BenchmarkError(
                f"the bundle '{self.bundle.manifest.name}' has no {component}; it has "
                f"{', '.join(components)}"
            )
        return components[component].spec()

    def kept(self, kind: str, component: str) -> Path:
        """The folder of what this peer keeps of a component."""
        return self.model.cache / kind / component


class WholeImages(Peer):
    """A peer with a loop of its own, which runs no single networks."""

    def engine(self, component: str) -> Engine:
        raise PeerUnavailableError(
            f"this peer makes whole images; run '{component}' with the peer 'eager'"
        )

    @abstractmethod
    def generator(self, workload: ImageWorkload, clock: StageClock) -> Runner: ...

    def check_steps_made(self, made: float, workload: ImageWorkload) -> None:
        """See that a loop which is not ours did all of its work.

        Args:
            made: steps of an image, of several on average.
            workload: what it was told.

        Raises:
            BenchmarkError: it made other steps than it was told to.
        """
        if made != workload.steps:
            raise BenchmarkError(
                f"{made:g} steps were made in place of {workload.steps}, so the time is no "
                "comparison; is this version of the peer supported?"
            )


def components_of(workloads: Sequence[Workload], bundle: Bundle) -> tuple[str, ...]:
    """The components that workloads run, each once."""
    names: list[str] = []
    for workload in workloads:
        names += [workload.component] if isinstance(workload, Forward) else needed(bundle)
    return tuple(dict.fromkeys(names))
