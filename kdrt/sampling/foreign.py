"""Samplers that are not ours: any function with the signature of k-diffusion's ``sample_*``.

    def sampler(model, x, sigmas, extra_args=None, callback=None, disable=None, **options) -> x

Such a function calls ``model(x, sigma)`` with σ as a tensor ``[B]``, draws its own noise, and
keeps the loop to itself. `run_foreign` makes an iterator of it: the function runs in a thread that
advances only while the caller waits for the next step, so the two never work at the same time, and
the caller can leave at any step.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kdrt.errors import InvalidRequestError
from kdrt.sampling.k_diffusion import k_diffusion_sampler
from kdrt.sampling.noise import NoiseSource, overlap
from kdrt.sampling.plan import NoiseSlot, Plan
from kdrt.sampling.samplers.dpm_adaptive import AdaptivePlan
from kdrt.sampling.schedules import NoiseSchedule
from kdrt.sampling.step import Denoise, Step

Sampler = Callable[..., Any]

_OURS = ("model", "x", "sigmas", "sigma_min", "sigma_max", "callback", "disable")
_BEFORE_ALL = 999999999.9
"""ComfyUI's σ of "0 % of sampling done"."""


@dataclass(frozen=True, slots=True)
class ForeignPlan:
    """A foreign sampler on a grid. Like `Plan`, it has ``sampler``, ``sigmas`` and ``steps``.

    Attributes:
        sampler: its name, which is that of the function.
        sigmas: the grid, descending; may end in 0.
        function: the sampler.
        options: its own arguments.
    """

    sampler: str
    sigmas: tuple[float, ...]
    function: Sampler
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs_unconditional(self) -> bool:
        """Foreign samplers get guided results only."""
        return False

    @property
    def steps(self) -> int:
        """Number of steps of the grid (a sampler that only takes its ends may make others)."""
        return len(self.sigmas) - 1


AnyPlan = Plan | AdaptivePlan | ForeignPlan
"""All of them have ``sampler``, ``sigmas``, ``steps`` and ``needs_unconditional``."""


def foreign_plan(sampler: str | Sampler, sigmas: Sequence[float], /, **options: Any) -> ForeignPlan:
    """Prepare a run of a foreign sampler.

    Args:
        sampler: a function; or a name such as ``"k_diffusion.sample_heun"``, which takes the
            function from the installed package.
        sigmas: N + 1 noise levels, strictly descending; usually ends in 0. A function that takes
            ``sigma_min`` and ``sigma_max`` instead gets the two ends, and N as ``n``.
        options: passed on to the function.

    Raises:
        InvalidRequestError: the grid is unusable, the function takes no such option, or its
            package is missing.
    """
    function = k_diffusion_sampler(sampler) if isinstance(sampler, str) else sampler
    name = getattr(function, "__name__", type(function).__name__)
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:  # of a function that is not Python's
        raise InvalidRequestError(f"{name} is no sampler: nobody can tell what it takes") from error
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for option in options:
        if option in _OURS or not (takes_all or option in parameters):
            own = ", ".join(p for p in list(parameters)[2:] if p not in _OURS) or "none"
            raise InvalidRequestError(f"{name} has no option {option!r}; its options: {own}")
    grid = tuple(float(sigma) for sigma in sigmas)
    if len(grid) < 2 or not all(math.inf > high > low >= 0 for high, low in pairwise(grid)):
        raise InvalidRequestError(
            "sigmas must be at least two numbers, finite and descending strictly"
        )
    return ForeignPlan(name, grid, function, dict(options))


def run_foreign(
    planned: ForeignPlan,
    latents: Tensor,
    denoise: Denoise,
    noise: NoiseSource,
    noise_schedule: NoiseSchedule | None = None,
    seed: int = 0,
) -> Iterator[Step]:
    """Run a foreign sampler and yield after every step, like `kdrt.sampling.run`.

    The function is given these arguments, if it has parameters of these names: ``extra_args``
    (empty), ``disable`` (True), ``callback``, and ``noise_sampler``, which draws from ``noise``
    image by image. ``torch.randn_like`` and ``torch.randn`` of the latents' shape draw from
    ``noise`` too, so an image does not depend on its batch. While the function runs, PyTorch's
    global generator belongs to it and is seeded with ``seed``; at every step the caller has its own
    generator state again.

    A step is known to be complete only when the next one calls back. What a step yields is exact,
    but one evaluation of the following step has been made by then. A function that never calls back
    yields once, at its end.

    Args:
        planned: from `foreign_plan`.
        latents: ``[B, C, h, w]``, already scaled by ``planned.sigmas[0]``. Not modified.
        denoise: as for `kdrt.sampling.run`.
        noise: gives each image its own noise.
        noise_schedule: the model's training table, for functions that ask the model for it; see
            `ForeignModel`.
        seed: seeds PyTorch's global generator, for what the function draws from it.

    Raises:
        InvalidRequestError: the function asked for something that the model cannot do, or did not
            return latents. Its own exceptions are raised as they are.
    """
    model = ForeignModel(denoise, latents, noise_schedule)
    # The current stream belongs to a thread, and buffers are written on the caller's.
    stream = torch.cuda.current_stream(latents.device) if latents.is_cuda else None
    worker = _Worker(lambda switch: _call(planned, model, latents, noise, switch), stream)
    random = _OwnRandomState(seed)
    pending: dict[str, Any] | None = None
    index = 0
    try:
        while True:
            with random:
                seen = worker.resume()
            if seen is None:
                break
            if pending is not None:
                sigma, sigma_next = float(pending["sigma"]), float(seen["sigma"])
                yield Step(index, sigma, sigma_next, seen["x"], pending["denoised"])
                index += 1
            pending = seen
    finally:
        worker.cancel()
    final = _checked(worker.result, planned, latents)
    sigma = planned.sigmas[0] if pending is None else float(pending["sigma"])
    denoised = final if pending is None else pending["denoised"]
    yield Step(index, sigma, planned.sigmas[-1], final, denoised)


class ForeignModel:
    """Our denoiser as foreign samplers know a model: ``model(x, sigma, **extra_args)``.

    Samplers of web UI extensions look for more than a function. There is: ``sigmas`` (the
    training levels, ascending), ``sigma_min``, ``sigma_max``, ``sigma_to_t``, ``t_to_sigma``, as
    k-diffusion's wrappers have them; all of this again as ``inner_model``, any number of times;
    and as ``model_sampling``, with ComfyUI's ``timestep``, ``sigma`` and ``percent_to_sigma``.
    """

    def __init__(
        self, denoise: Denoise, latents: Tensor, noise_schedule: NoiseSchedule | None
    ) -> None:
        self._denoise = denoise
        self._shape, self._dtype, self._device = latents.shape, latents.dtype, latents.device
        self._schedule = noise_schedule

    def __call__(self, x: Tensor, sigma: Tensor | float, **extra_args: Any) -> Tensor:
        """Denoise ``x`` at the noise level ``sigma``, one number for all images.

        Returns:
            A new tensor of the shape and dtype of ``x``.

        Raises:
            InvalidRequestError: another shape than the run's, or a noise level for each image.
        """
        if x.shape != self._shape:
            raise InvalidRequestError(
                f"the sampler evaluates the model at shape {list(x.shape)}; this run has buffers "
                f"for {list(self._shape)} only"
            )
        levels = torch.as_tensor(sigma).flatten().tolist()
        if any(level != levels[0] for level in levels):
            raise InvalidRequestError(
                "the sampler gives each image another sigma; they must be equal"
            )
        return self._denoise(x.to(self._dtype), levels[0]).to(x.dtype, copy=True)

    @property
    def inner_model(self) -> ForeignModel:
        return self

    @property
    def model_sampling(self) -> ForeignModel:
        return self

    @property
    def sigmas(self) -> Tensor:
        levels = torch.tensor(self._table.sigmas, dtype=torch.float32)
        return levels.to(self._device)

    @property
    def sigma_min(self) -> Tensor:
        return self.sigmas[0]

    @property
    def sigma_max(self) -> Tensor:
        return self.sigmas[-1]

    def sigma_to_t(self, sigma: Tensor, quantize: bool | None = None) -> Tensor:
        steps = torch.tensor(
            [self._table.timestep(s) for s in sigma.flatten().tolist()], dtype=torch.float32
        )
        steps = steps.reshape(sigma.shape).to(sigma)
        return steps.round() if quantize else steps

    def t_to_sigma(self, t: Tensor) -> Tensor:
        levels = torch.tensor(
            [self._table.sigma(step) for step in t.flatten().tolist()], dtype=torch.float32
        )
        return levels.reshape(t.shape).to(t)

    def timestep(self, sigma: Tensor) -> Tensor:
        return self.sigma_to_t(sigma)

    def sigma(self, timestep: Tensor) -> Tensor:
        return self.t_to_sigma(timestep)

    def percent_to_sigma(self, percent: float) -> float:
        """σ where that share of sampling is done, 0 to 1."""
        if percent <= 0:
            return _BEFORE_ALL
        last = len(self._table.sigmas) - 1
        return 0.0 if percent >= 1 else self._table.level((1 - percent) * last)

    @property
    def _table(self) -> NoiseSchedule:
        if self._schedule is None:
            raise InvalidRequestError(
                "the sampler asks for the training levels of the model; give run_foreign a "
                "noise_schedule"
            )
        return self._schedule


def _call(
    planned: ForeignPlan,
    model: ForeignModel,
    latents: Tensor,
    noise: NoiseSource,
    switch: Callable[[dict[str, Any]], None],
) -> Any:
    """Call the function with what its signature asks for."""
    parameters = inspect.signature(planned.function).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    sampler = _NoiseSampler(noise, latents)
    offered: dict[str, Any] = {
        "extra_args": {},
        "callback": switch,
        "disable": True,
    }
    keywords = {n: v for n, v in offered.items() if takes_all or n in parameters}
    if "noise_sampler" in parameters:
        keywords["noise_sampler"] = sampler
    grid: dict[str, Any]
    if "sigma_min" in parameters and "sigmas" not in parameters:
        positive = [sigma for sigma in planned.sigmas if sigma > 0]
        grid = {"sigma_min": positive[-1], "sigma_max": positive[0]}
        if "n" in parameters:
            grid["n"] = planned.steps
        arguments: list[Tensor] = []
    else:
        grid = {}
        arguments = [torch.tensor(planned.sigmas, dtype=latents.dtype, device=latents.device)]
    with torch.no_grad(), _PerImage(sampler, latents):
        return planned.function(
            model, latents.clone(), *arguments, **(keywords | grid | dict(planned.options))
        )


class _NoiseSampler:
    """``noise_sampler(sigma, sigma_next)``: standard normal, image by image, with the correlation
    that `NoiseSlot` describes between one call and the next."""

    def __init__(self, noise: NoiseSource, like: Tensor) -> None:
        self._noise = noise
        self._like = like
        self._slot: NoiseSlot | None = None
        self._draw = like

    def __call__(self, sigma: Tensor | float, sigma_next: Tensor | float) -> Tensor:
        slot = NoiseSlot(float(sigma), float(sigma_next))
        rho = overlap(self._slot, slot)
        draw = self._noise.draw([slot])[0].to(self._like)
        if rho > 0:
            draw = draw.mul_(math.sqrt(1 - rho)).add_(self._draw, alpha=math.sqrt(rho))
        self._slot, self._draw = slot, draw
        return draw.clone()

    def independent(self) -> Tensor:
        return self._noise.draw([NoiseSlot(0.0, 0.0)])[0].to(self._like)


class _PerImage(TorchFunctionMode):
    """Gives ``torch.randn_like(x)`` and ``torch.randn(x.shape)`` the images' own noise."""

    def __init__(self, sampler: _NoiseSampler, like: Tensor) -> None:
        super().__init__()
        self._sampler = sampler
        self._like = like

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func in (torch.randn_like, torch.randn) and given.get("generator") is None:
            result = func(*args, **given)
            if result.shape == self._like.shape:
                result.copy_(self._sampler.independent())
            return result
        return func(*args, **given)


class _Cancelled(BaseException):
    """Ends the function when the caller has left. Not an Exception, so that the function's own
    error handlers do not catch it."""


class _Worker:
    """Runs a function in a thread, and stops it wherever it calls ``switch``."""

    def __init__(
        self,
        function: Callable[[Callable[[dict[str, Any]], None]], Any],
        stream: torch.cuda.Stream | None,
    ) -> None:
        self._function = function
        self._stream = stream
        self._go: SimpleQueue[bool] = SimpleQueue()
        self._seen: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.result: Any = None

    def resume(self) -> dict[str, Any] | None:
        """Let the function go on to its next ``switch``: what it handed over, None at its end."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        else:
            self._go.put(True)
        seen = self._seen.get()
        if self._error is not None:
            raise self._error
        return seen

    def cancel(self) -> None:
        """End the function where it stands, if it still runs."""
        if self._thread is not None:
            self._go.put(False)
            self._thread.join()

    def _switch(self, seen: dict[str, Any]) -> None:
        self._seen.put(seen)
        if not self._go.get():
            raise _Cancelled

    def _run(self) -> None:
        _WORKER.is_one = True
        with torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext():
            try:
                self.result = self._function(self._switch)
            except _Cancelled:
                pass
            except BaseException as error:
                self._error = error
        self._seen.put(None)


_GLOBAL_GENERATOR = threading.Lock()
_WORKER = threading.local()


class _OwnRandomState:
    """Within: a state of PyTorch's global CPU generator that goes on from one entry to the next.
    Outside: the caller's, untouched. The process has one such generator, so two runs at once wait
    for each other; but not a run inside of another's function, which waits for it."""

    def __init__(self, seed: int) -> None:
        self._own = torch.Generator().manual_seed(seed).get_state()
        self._callers = self._own
        self._waits = not hasattr(_WORKER, "is_one")

    def __enter__(self) -> None:
        if self._waits:
            _GLOBAL_GENERATOR.acquire()
        self._callers = torch.get_rng_state()
        torch.set_rng_state(self._own)

    def __exit__(self, *exception: object) -> None:
        self._own = torch.get_rng_state()
        torch.set_rng_state(self._callers)
        if self._waits:
            _GLOBAL_GENERATOR.release()


def _checked(result: Any, planned: ForeignPlan, latents: Tensor) -> Tensor:
    if not isinstance(result, Tensor) or result.shape != latents.shape:
        what = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise InvalidRequestError(
            f"{planned.sampler} returned {what}, expected latents {list(latents.shape)}"
        )
    return result.to(latents.dtype)
