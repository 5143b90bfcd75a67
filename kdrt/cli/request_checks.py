"""What can be wrong with a request whatever the model, so that it is found before one is loaded."""

from __future__ import annotations

from typing import cast

from kdrt.request.complete import complete
from kdrt.request.fields import Request
from kdrt.request.grid import check_start, is_custom, with_own_grid
from kdrt.request.hires import check_hires_fields
from kdrt.sampling import find_noise, find_sampler, find_schedule, is_foreign


def check_without_model(request: Request) -> None:
    """Refuse what every model would refuse.

    Raises:
        InvalidRequestError: a value is out of range, or a sampler, schedule or noise is unknown.
    """
    request = with_own_grid(complete(request))
    check_start(request)
    check_hires_fields(request)
    find_noise(request["noise"])
    if not is_foreign(request["sampler"]):
        find_sampler(cast(str, request["sampler"]))
    if not is_custom(request):
        find_schedule(request["schedule"])
