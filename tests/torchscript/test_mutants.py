"""Every mutant of the table is refused, at every kind of precision at which it has to be, by the check that sees it."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from cosyjit.families import PRECISIONS
from cosyjit.torchscript.dissect import is_filled
from cosyjit.torchscript.graph import Graph
from cosyjit.torchscript.structure import weights_of
from tests.support.judged import PROVENANCE, cast_encoder, refusal, saved, verified
from tests.support.mutants import CODE, MUTANTS, NUMBERS, WEIGHTS, Mutant

SAID = {
    NUMBERS: r"forward(_chunk|\b.* frames.*?), \w+ inputs.*: .*",
    CODE: "the artifact's code is not that of its encoder",
    WEIGHTS: r"a constant of the artifact's \w+, \([\d, ]+\), is not the cast of its tensor",
}


@cache
def graph_in(directory: Path, component: str, precision: str) -> Graph | None:
    """The graph of a sound artifact; None of quantized ones."""
    with TemporaryDirectory() as into:
        path = saved(directory, component, precision, Path(into))
        found = verified(path, directory, component, precision).graph
        assert (found is None) == PRECISIONS[precision].quantized
        return found


def cases() -> Iterator[object]:
    """Each mutant at fp32 and int8, and at both half precisions or at either in turn.

    Either will do where code or weights show the fault: they are compared before anything depends on which of the two
    the processor has arithmetic for. Of the mutants of the language model's encoder every fifth is tested always, the
    others are slow.
    """
    for number, mutant in enumerate(MUTANTS):
        always = mutant.component == "llm.llm" and number % 5 == 0
        either = [each for each in mutant.seen if each in {"fp16", "bf16"} and mutant.seen[each] != NUMBERS]
        left_out = {*either} - {*either[number % 2 :][:1]} if len(either) > 1 else set()
        for precision in [each for each in mutant.seen if each not in left_out]:
            marks = [] if always and precision == "fp32" else [pytest.mark.slow]
            yield pytest.param(mutant, precision, marks=marks, id=f"{mutant.name}-{mutant.component}-{precision}")


@pytest.mark.parametrize(("mutant", "precision"), list(cases()))
def test_a_mutant_is_refused(mutant: Mutant, precision: str, tiny: Path, tiny2: Path, tmp_path: Path) -> None:
    directory = tiny2 if mutant.component.endswith((" 2", ".chunked")) else tiny
    component = mutant.component.removesuffix(" 2")
    path = saved(directory, component, precision, tmp_path, mutant.fault)
    assert re.fullmatch(SAID[mutant.seen[precision]], refusal(path, directory, component, precision))
    graph = graph_in(directory, component, precision)
    if graph is not None:  # as its zip, the mutant is refused before it is called
        assert not is_filled(path, graph, weights_of(cast_encoder(directory, component, precision)), PROVENANCE)
