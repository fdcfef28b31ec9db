"""Licences of pretrained weights: what they forbid, and whether the user has accepted that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dreamset.core.errors import InputError

if TYPE_CHECKING:
    from dreamset.params import Params


@dataclass(frozen=True)
class Licence:
    """The facts on a licence that a card states.

    Attributes:
        url: where it can be read.
        limits: its limits in one sentence.
        commercial: whether it allows commercial use.
        listed: whether the Hugging Face hub has its name in the list of licences.
    """

    url: str
    limits: str
    commercial: bool = True
    listed: bool = True


_USES: Final = "Uses are restricted as its attachment A lists, and whoever passes the weights on must pass that on too."
_NO_PROFIT: Final = "Commercial use is not allowed under it."

KNOWN: Final = {
    "apache-2.0": Licence("https://www.apache.org/licenses/LICENSE-2.0", "It restricts no use."),
    "mit": Licence("https://opensource.org/license/mit", "It restricts no use."),
    "creativeml-openrail-m": Licence("https://huggingface.co/spaces/CompVis/stable-diffusion-license", _USES),
    "openrail++": Licence(
        "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md", _USES
    ),
    "sai-nc-community": Licence(
        "https://huggingface.co/stabilityai/sdxl-turbo/blob/main/LICENSE.md", _NO_PROFIT, commercial=False, listed=False
    ),
    "cc-by-nc-4.0": Licence("https://creativecommons.org/licenses/by-nc/4.0/", _NO_PROFIT, commercial=False),
    "cc-by-nc-sa-4.0": Licence("https://creativecommons.org/licenses/by-nc-sa/4.0/", _NO_PROFIT, commercial=False),
}


def check(params: Params, recipe: str | None = None) -> None:
    """Refuse weights for non-commercial use until ``accept_licence`` says that their terms are accepted.

    Args:
        params: all parameters.
        recipe: a row that is used beside the active ones; None: no other.

    Raises:
        InputError: the terms are not accepted; the message names the row, the licence, its address and the key.
    """
    row = f"models.{params.model}"
    used = [(row, params.base.licence)]
    if params.base.few_steps and params.draws_by_student(params.base, recipe):
        used.append((f"{row}.student", params.base.few_steps.licence))
    for where, name in used:
        licence = KNOWN.get(name)
        if licence is None or licence.commercial or params.accept_licence:
            continue
        raise InputError(
            f"{where}: its licence {name} allows no commercial use ({licence.url}); read it, and set "
            "accept_licence: true in params.yaml if your use is within it."
        )


def sentence(name: str) -> str:
    """Return the limits of a licence in a sentence or two, with its address."""
    licence = KNOWN.get(name)
    if licence is None:
        return f"Licence {name}: read its limits before you use or pass on what is here."
    return f"Licence [{name}]({licence.url}). {licence.limits}"


def front_matter(name: str) -> list[str]:
    """Return the lines of a card's header that tell the Hugging Face hub the licence."""
    licence = KNOWN.get(name)
    if licence is None or licence.listed:
        return [f"license: {name}"]
    return ["license: other", f"license_name: {name}", f"license_link: {licence.url}"]
