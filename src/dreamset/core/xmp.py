"""The XMP packet that marks an image as synthetic for every reader of IPTC metadata."""

from __future__ import annotations

import re
from typing import Final
from xml.sax.saxutils import quoteattr

CHUNK: Final = "XML:com.adobe.xmp"  # keyword of the PNG text chunk that holds XMP
# The IPTC's digital source types for images drawn by a model, and by a model from an existing image.
GENERATED: Final = "trainedAlgorithmicMedia"
EDITED: Final = "compositeWithTrainedAlgorithmicMedia"
_TYPES: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/"

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def packet(model: str, sha256: str, prompt: str, seed: int, tool: str, source: str = GENERATED) -> str:
    """Return an XMP packet with the properties of the IPTC Photo Metadata Standard 2025.1 for generated images.

    Args:
        model: name of the model that drew the image.
        sha256: hash of that model's files.
        prompt: the prompt or condition.
        seed: of the starting noise.
        tool: the program that drew the image, with its version.
        source: ``GENERATED`` or ``EDITED``.
    """
    facts = {
        "Iptc4xmpExt:DigitalSourceType": _TYPES + source,
        "Iptc4xmpExt:AISystemUsed": model,
        "Iptc4xmpExt:AISystemVersionUsed": f"sha256:{sha256}",
        "Iptc4xmpExt:AIPromptInformation": f"{prompt} (seed {seed})",
        "xmp:CreatorTool": tool,
    }
    written = "".join(f"\n   {name}={quoteattr(_NOT_XML.sub('�', value))}" for name, value in facts.items())
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
        ' <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\n'
        '  <rdf:Description rdf:about=""\n'
        '   xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"\n'
        f'   xmlns:xmp="http://ns.adobe.com/xap/1.0/"{written}/>\n'
        " </rdf:RDF>\n"
        "</x:xmpmeta>\n"
        '<?xpacket end="r"?>'
    )
