"""What is measured, and what the conductor and its workers tell each other: lines of JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

PROMPT = "a red circle on a blue background"


class Strict(BaseModel):
    """Unknown keys fail."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(Strict):
    """Whose networks: a bundle for kdrt, and the source it was exported from for its peers.

    Attributes:
        name: for people.
        bundle: the bundle's folder.
        source: what :func:`kdrt_export.sources.open_source` takes.
        random_weights: the architecture of ``source`` with random weights.
        cache: where peers keep what they make of the networks.
    """

    name: str
    bundle: Path
    source: str
    random_weights: bool = False
    cache: Path


class ImageWorkload(Strict):
    """Prompt to pixels. Every peer samples with Euler's method on the same noise levels from the
    same noise, so that every peer computes the same image.

    Attributes:
        batch: images of the prompt made together.
        height: pixels; None is the model's default.
        guidance: its scale; 1 is none, which halves the work. None is the model's default.
        remember_prompt: let kdrt keep the prompt's embeddings, as it does for its users. Off, every
            image encodes its prompt anew.
    """

    kind: Literal["generation"] = "generation"
    prompt: str = PROMPT
    steps: int = 20
    batch: int = 1
    height: int | None = None
    width: int | None = None
    guidance: float | None = None
    seed: int = 7
    remember_prompt: bool = False

    def words(self) -> str:
        """``20 steps of Euler's method with guidance``."""
        guided = "without guidance" if self.guidance == 1 else "with guidance"
        return f"{self.steps} steps of Euler's method {guided}"


class Forward(Strict):
    """One call of one network on random inputs; ``dims`` are the sizes of its symbols."""

    kind: Literal["forward"] = "forward"
    component: str
    dims: dict[str, int]
    seed: int = 0


class Server(Strict):
    """Requests for single images that arrive at random: exponential gaps between them, drawn
    from ``seed``, ``rate`` a second on average. They are served in order, and how long one takes
    counts from its arrival. What has not arrived or begun after ``limit`` seconds is not served.
    """

    kind: Literal["server"] = "server"
    generation: ImageWorkload
    rate: float = Field(gt=0)
    requests: int = Field(gt=0)
    seed: int = 0
    limit: float = 60.0


Workload = Annotated[ImageWorkload | Forward | Server, Field(discriminator="kind")]


class BenchJob(Strict):
    """One row's process: a peer with its options, and the workloads it will be told to run.

    Attributes:
        prepare: make what the peer keeps in the model's cache, and nothing else.
        count_flops: preparing, count the operations of the workloads too.
        first_call: run each workload once as a part of loading.
        warmups: runs of each workload that do not count, after the first call.
        folder: where the outputs go.
    """

    peer: str
    options: dict[str, str] = Field(default_factory=dict)
    model: Model
    workloads: tuple[Workload, ...]
    threads: int = Field(ge=1)
    folder: Path
    first_call: bool = True
    warmups: int = 1
    prepare: bool = False
    count_flops: bool = False


class Ready(Strict):
    """A worker is loaded and warm. Seconds, by workload if there were first calls; memory in bytes,
    None where it cannot be read."""

    load: float
    first_calls: tuple[float, ...]
    memory_loaded: int | None
    settings: dict[str, str]
    versions: dict[str, str]


class Timing(Strict):
    """One run. ``cpu`` is the processor time of the process, ``idle_cpu`` what it used since the
    run before, when it should have used none; ``faults`` are pages that had to be read from a disk
    meanwhile, as happens where memory is short; ``energy`` is in joules."""

    seconds: float
    cpu: float
    idle_cpu: float
    faults: int = 0
    stages: dict[str, float] = Field(default_factory=dict)
    energy: float | None = None
    latencies: tuple[float, ...] = ()


class Finished(Strict):
    """A worker has written its outputs, ``{index}.npz`` and ``{index}.png`` by workload.

    Attributes:
        memory_peak: most resident bytes of the process in its life.
        memory_running: the same, after loading.
        calls: CUDA only: launches of kernels and graphs, and waits of the host, in one run of
            each workload.
        flops: operations of each workload, where they were counted.
    """

    memory_peak: int | None
    memory_running: int | None
    device_memory_peak: int | None = None
    calls: tuple[dict[str, int], ...] = ()
    flops: tuple[float, ...] = ()


class Failed(Strict):
    """A worker gives up; ``known`` says that the sentence is for the user, ``unavailable`` that
    the peer cannot do this at all, which is no failure."""

    failed: str
    known: bool
    unavailable: bool = False


class Command(Strict):
    """To a worker: run the workload of this index, or finish."""

    run: int | None = None
    finish: bool = False
