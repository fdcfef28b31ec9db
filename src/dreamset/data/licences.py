"""Licences of pretrained weights: what may not be done with them, and whether that has been accepted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dreamset.core.errors import InputError

if TYPE_CHECKING:
    from dreamset.params import Params


@dataclass(frozen=True)
class Licence:
    """What a card says of a licence.

    ``limits`` is one sentence; ``listed`` is whether the Hugging Face hub has the name in its list of licences.
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


def check(params: Params) -> None:
    """Refuse a base for non-commercial use until ``accept_licence`` says that its terms are accepted.

    Raises:
        InputError: naming the row, the licence, where it stands and the key.
    """
    name = params.base.licence
    licence = KNOWN.get(name)
    if licence and not licence.commercial and not params.accept_licence:
        raise InputError(
            f"models.{params.model}: its licence {name} allows no commercial use ({licence.url}); read it, and set "
            "accept_licence: true in params.yaml if your use is within it."
        )


def sentence(name: str) -> str:
    """The limits of a licence in a sentence or two, with the place where it can be read."""
    licence = KNOWN.get(name)
    if licence is None:
        return f"Licence {name}: read its limits before you use or pass on what is here."
    return f"Licence [{name}]({licence.url}). {licence.limits}"


def front_matter(name: str) -> list[str]:
    """The lines of a card's header that tell the Hugging Face hub the licence."""
    licence = KNOWN.get(name)
    if licence is None or licence.listed:
        return [f"license: {name}"]
    return ["license: other", f"license_name: {name}", f"license_link: {licence.url}"]
