"""The verdict is one of three, by a rule and a choice that stand before the results."""

from dataclasses import replace

import numpy as np
import pytest

import toy
from dreamset.core.errors import InputError
from dreamset.data.runs import BOTH, BOTH_STRONG, REAL_ONLY, REAL_STRONG, Run
from dreamset.metrics import verdict
from dreamset.metrics.accuracy import interval
from dreamset.metrics.gains import Gain
from dreamset.metrics.mcnemar import mcnemar, reach

OF = Run("datadream_dset", BOTH, "resnet20")
STRONG = replace(OF, kind=BOTH_STRONG)
ALONE = Run("real", REAL_ONLY, "resnet20")
ALONE_STRONG = replace(ALONE, kind=REAL_STRONG)


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (0.001, 0.03, "helps"),
        (0.001, 0.004, "helps"),  # little, but surely
        (0.0, 0.03, "cannot_tell"),
        (-0.02, 0.01, "cannot_tell"),
        (-0.02, 0.0099, "does_not_help"),
        (-0.05, -0.01, "does_not_help"),
    ],
)
def test_the_rule(low: float, high: float, outcome: str) -> None:
    assert verdict.decide(low, high, 0.01) == outcome


def test_an_interval_is_not_enough() -> None:
    assert verdict.decide(0.001, 0.03, 0.01, significant=False) == "cannot_tell"
    assert verdict.decide(-0.02, 0.0, 0.01, enough=False) == "cannot_tell"
    # No image told them apart, in no seed: nothing was measured.
    assert verdict.decide(0.0, 0.0, 0.01) == verdict.decide(0.02, 0.02, 0.01) == "cannot_tell"
    assert verdict.decide(-0.05, -0.01, 0.01, significant=False) == "does_not_help"


@pytest.mark.parametrize(
    ("gained", "lost", "images", "outcome", "words"),
    [
        (0, 0, 48, "cannot_tell", "holds both no gain and one of +1.0 or more"),
        (0, 1, 48, "cannot_tell", "holds both no gain and one of +1.0 or more"),
        (3, 0, 48, "cannot_tell", "holds both no gain and one of +1.0 or more"),
        (5, 0, 48, "cannot_tell", "exact test does not tell it from chance (p = 0.062)"),
        (6, 0, 48, "helps", "lies above zero"),
        (0, 12, 48, "does_not_help", "ends below +1.0"),
        (0, 5, 5, "cannot_tell", "so few images can show no difference"),
        (5, 0, 5, "cannot_tell", "so few images can show no difference"),
        (5, 7, 2000, "does_not_help", "ends below +1.0"),
    ],
)
def test_few_images_decide_nothing(gained: int, lost: int, images: int, outcome: str, words: str) -> None:
    values = np.array([1.0] * gained + [-1.0] * lost + [0.0] * (images - gained - lost))
    found = interval(values, 2000, 0.95, 0, paired=True)
    row = {"of": str(OF), "minus": str(ALONE), "difference": found.estimate, "low": found.low, "high": found.high}
    record = {"differences": [row | {"mcnemar_p": mcnemar(values).p}], "confidence": 0.95, "test_images": images}
    said = verdict.of_evaluation(toy.params(), record | {"reach": reach(images, 0.95)})
    assert said is not None
    assert said["outcome"] == outcome
    assert words in said["sentence"]


def test_without_a_gain_of_interest_only_harm_is_no_help() -> None:
    assert verdict.decide(-0.01, 0.0, 0.0) == "cannot_tell"
    assert verdict.decide(-0.01, -0.001, 0.0) == "does_not_help"


def test_the_best_real_arm_has_to_be_beaten() -> None:
    params = toy.params()
    gains = [
        Gain(OF, ALONE, 0.05, 0.03, 0.07),
        Gain(OF, ALONE_STRONG, 0.01, -0.01, 0.03),
        Gain(OF, replace(ALONE, classifier="clip_lora"), -0.5, -0.6, -0.4),
        Gain(OF, replace(OF, arm="stable_diffusion"), -0.5, -0.6, -0.4),
        Gain(replace(OF, classifier="clip_lora"), replace(ALONE, classifier="clip_lora"), -0.5, -0.6, -0.4),
    ]
    found = verdict.judge(params, gains, 0.95, "640 test images")
    assert found is not None
    assert (found.outcome, found.minus, found.difference) == ("cannot_tell", ALONE_STRONG, 0.01)
    assert found.sentence == (
        "These images cannot tell: +1.0 points (−1.0 to +3.0). Trained on the real images and those of datadream_dset, "
        "resnet20 gets 1.0 percentage points more of 640 test images right than on the real ones alone with strong "
        "augmentation, and the 95% interval (−1.0 to +3.0) holds both no gain and one of +1.0 or more."
    )
    assert verdict.judge(params, gains[2:4], 0.95, "640 test images") is None


def test_strong_augmentation_of_both_stands_against_the_best_real_arm_where_it_was_measured() -> None:
    params = toy.params()
    gains = [
        Gain(OF, ALONE_STRONG, 0.09, 0.07, 0.11),
        Gain(STRONG, ALONE, 0.06, 0.04, 0.08),
        Gain(STRONG, ALONE_STRONG, 0.03, 0.01, 0.05),
    ]
    found = verdict.judge(params, gains, 0.95, "640 test images")
    assert found is not None
    assert (found.of, found.minus, found.difference) == (STRONG, ALONE_STRONG, 0.03)
    assert found.sentence.startswith(
        "Synthetic images helped: +3.0 points (+1.0 to +5.0). Trained on the real images and those of "
        "datadream_dset with strong augmentation, resnet20 gets 3.0 percentage points more of 640 test images right "
        "than on the real ones alone with strong augmentation, and"
    )
    # A higher accuracy in the other augmentation counts for nothing, and the other classifiers have but that.
    assert verdict.over_real(gains, "datadream_dset", "resnet20", (BOTH,)) == gains[0]
    assert verdict.over_real(gains[:1], "datadream_dset", "resnet20") == gains[0]
    assert verdict.over_real(gains, "datadream_dset", "clip_lora") is None


@pytest.mark.parametrize(
    ("difference", "low", "high", "words"),
    [
        (
            0.0312,
            0.01,
            0.05,
            "helped: +3.1 points (+1.0 to +5.0). .* 3.1 percentage points more .* the whole 90% interval (+1.0",
        ),
        (
            -0.02,
            -0.03,
            0.004,
            "No gain found: −2.0 points (−3.0 to +0.4). .* 2.0 percentage points fewer .* ends below +1.0, the",
        ),
        (0.0001, -0.02, 0.02, "cannot tell: .* as many of 60 labelled images, each held out once, right as on the"),
    ],
)
def test_each_sentence_gives_its_numbers(difference: float, low: float, high: float, words: str) -> None:
    row = {"of": str(OF), "minus": str(ALONE), "difference": difference, "low": low, "high": high}
    record = {"differences": [row], "confidence": 0.9, "test_images": 60, "protocol": "cv"}
    found = verdict.of_evaluation(toy.params(), record)
    assert found is not None
    start = 0
    for part in words.split(" .* "):
        start = found["sentence"].index(part, start)
    assert {name: found[name] for name in ("difference", "low", "high")} == {
        "difference": difference,
        "low": low,
        "high": high,
    }


@pytest.mark.parametrize(
    ("outcome", "gain", "low", "high", "words"),
    [
        ("helps", 0.023, 0.012, 0.033, "Synthetic images helped: +2.3 points (+1.2 to +3.3)."),
        ("does_not_help", -0.003, -0.023, 0.009, "No gain found: −0.3 points (−2.3 to +0.9)."),
        ("does_not_help", -0.012, -0.023, -0.001, "Synthetic images did harm: −1.2 points (−2.3 to −0.1)."),
        ("cannot_tell", 0.017, -0.019, 0.053, "These images cannot tell: +1.7 points (−1.9 to +5.3)."),
    ],
)
def test_the_finding_comes_first(outcome: str, gain: float, low: float, high: float, words: str) -> None:
    assert verdict.finding({"outcome": outcome, "difference": gain, "low": low, "high": high}) == words


def test_the_advice_is_on_what_is_delivered() -> None:
    assert verdict.advice("real") == "Use the classifier of your real images: models/classifier."
    assert verdict.advice("datadream_dset") == "Use the classifier of real and synthetic images: models/classifier."


def test_the_choice_is_the_parameters() -> None:
    params = toy.params(primary="datadream_cls", models__bundled__train__deliver="clip_lora")
    assert (params.primary_recipe, params.primary_classifier) == ("datadream_dset", "clip_lora")
    assert toy.params(active=["stable_diffusion"]).primary_recipe == "stable_diffusion"
    assert toy.params(primary="stable_diffusion").primary_recipe == "stable_diffusion"
    assert toy.params(train__classifiers=["clip_lora"]).primary_classifier == "clip_lora"
    with pytest.raises(InputError, match=r"primary: no row 'nothing' in recipes"):
        toy.params(primary="nothing")
