"""What a person reads: grids, tables, the verdict and the next command."""

import functools
import io
import math
import re
import shlex
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import synthetic
from rich.console import Console
from typer.main import get_command

from taylorder.adapt import cost
from taylorder.cli import app
from taylorder.reports import grids, savings, summary, tables, verdict
from taylorder.reports.analysis import sections as report_sections
from taylorder.reports.numbers import percent
from taylorder.reports.render import export_svg, plain_text, print_sections
from taylorder.reports.sections import Section

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def some_error(layer, head, order, expansion):
    """Six heads of every fourth layer are ten times better than the rest, except around zero."""
    factor = 0.1 if head < 6 and layer % 4 == 0 and expansion != "zero" else 1
    return synthetic.hard_error(layer, head, order, expansion) * factor


def small_error(layer, head, order, expansion):
    return synthetic.hard_error(layer, head, order, "mean") * 0.05


MODELS = {
    "built-in": synthetic.analysis,
    "some": lambda: synthetic.analysis(error=some_error),
    "all": lambda: synthetic.analysis(layers=5, error=small_error),
    "many heads": lambda: synthetic.analysis(layers=4, heads=32, kv_heads=8, head_dim=128, error=some_error),
    "many heads without groups": lambda: synthetic.analysis(layers=4, heads=32, kv_heads=32, head_dim=128),
    "very many heads": lambda: synthetic.analysis(layers=2, heads=128, kv_heads=8, head_dim=128),
    "sliding": lambda: synthetic.analysis(
        layers=6, heads=4, kv_heads=1, head_dim=256, sliding=lambda layer: layer % 3 != 2
    ),
    "all sliding": lambda: synthetic.analysis(layers=3, heads=8, kv_heads=2, sliding=lambda layer: True),
    "encoder": lambda: synthetic.analysis(
        layers=6, heads=12, kv_heads=12, head_dim=32, causal=False, max_context=512, error=some_error
    ),
    "window": lambda: synthetic.analysis(layers=3, window=64, sinks=4),
    "alphas of heads": lambda: synthetic.analysis(layers=3, per_head_alpha=True, max_order=2),
    "one head": lambda: synthetic.analysis(layers=1, heads=1, kv_heads=1, max_order=1),
    "huge errors": lambda: synthetic.analysis(
        layers=3, error=lambda layer, head, order, expansion: 10.0 ** (2 * order), weights_note=None
    ),
}


@functools.cache
def case(name, **options):
    """The analysis and selection of one of the models; making them takes longer than most tests."""
    measured = case(name)[0] if options else MODELS[name]()
    return measured, synthetic.selection(measured, **options)


@functools.cache
def report(name, width=80, **options):
    return synthetic.report(*case(name, **options), width=width)


def told(measured, **options):
    return " ".join(verdict.sentences(measured, synthetic.selection(measured, **options)))


def told_of(name, **options):
    return " ".join(verdict.sentences(*case(name, **options)))


# Layout


@pytest.mark.parametrize("policy", ["error", "alpha"])
@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("name", MODELS)
def test_no_line_is_too_long_and_nothing_is_coloured(name, width, policy):
    lines = report(name, width, policy=policy).splitlines()
    assert max(map(len, lines)) <= width
    assert not any("\x1b" in line or line != line.rstrip() for line in lines)
    assert not any("\u2026" in line for line in lines), "a table was cut off"


@pytest.mark.parametrize("name", ["built-in", "some", "sliding"])
def test_colour_only_doubles_the_text(name):
    measured, chosen = case(name)
    console = Console(
        width=80, file=io.StringIO(), force_terminal=True, color_system="truecolor", highlight=False, no_color=False
    )
    print_sections(report_sections(measured, chosen), console)
    coloured = console.file.getvalue()
    assert ANSI.search(coloured)
    plain = [line.rstrip() for line in ANSI.sub("", coloured).splitlines()]
    assert plain == synthetic.report(measured, chosen).splitlines()


def test_every_module_is_named_by_its_number_and_the_pattern_is_given_once():
    text = report("built-in")
    assert text.count("model.layers.") == 1
    assert "layer N is" in text
    assert len(re.findall(r"^ +29 ", text, re.MULTILINE)) == 2, "last row of the two grids"


def test_order_grid_shows_orders_reasons_and_groups():
    text = report("some")
    assert re.search(r"^ +8   1 1 3 \u2502 1 3 1 \u2502 \u00b7 \u00b7 \u00b7 ", text, re.MULTILINE)
    assert re.search(r"^ +0   c g g \u2502 1 1 1 \u2502 \u00b7 \u00b7 \u00b7 ", text, re.MULTILINE)
    assert "1, 3  the order chosen (30 heads)" in text
    assert "g  exact: not all heads sharing its KV cache can have an order (11 heads)" in text
    assert "c  exact: an order that is good enough does not pay off (5 heads)" in text
    assert "\u00b7  exact: no measured order is good enough (224 heads)" in text


def test_alphas_stand_beside_the_orders_with_distance_and_doubt():
    measured, chosen = case("built-in")
    rows = {(row.module, row.projection): row for row in measured.spectral}
    wide, narrow = rows["model.layers.0.self_attn", "q"], rows["model.layers.1.self_attn", "q"]
    lines = plain_text([Section("", (grids.order_grid(measured, chosen),))]).splitlines()
    assert f"{wide.alpha:.2f}? {wide.D:.3f}".replace(" 0.", " .") in lines[1]
    assert f"{narrow.alpha:.2f}  {narrow.D:.3f}".replace("  0.", "  .") in lines[2]
    assert lines[2].rstrip().endswith("-"), "no o projection in layer 1"
    assert "failed" in lines[3], "the fit of k in layer 2"
    assert "alphas of dequantised weights" in " ".join(report("built-in").split())
    assert "dequantised" not in report("huge errors")


def test_error_grid_prints_the_measured_figures():
    measured, chosen = case("some")
    lines = plain_text([Section("", (grids.error_grid(measured, chosen),))]).splitlines()
    expected = [100 * some_error(8, head, 3, "mean") for head in range(9)]
    found = lines[9].replace("\u2502", " ").split()
    assert found[0] == "8"
    assert found[1:10] == [f"{e:.1f}*" if e <= 7 else f"{e:.0f}" if e >= 9.95 else f"{e:.1f}" for e in expected]
    assert found[10] == f"{100 * some_error(8, 6, 3, 'zero'):.0f}"


def test_heads_that_do_not_fit_are_summarised_per_layer():
    text = report("many heads")
    assert "lowest  median highest" in text
    assert re.search(r"^ +0   cgcg gg\u00b7\u00b7 \u00b7{4} ", text, re.MULTILINE), "eight groups of four"
    assert "exact: 128" in report("very many heads")
    assert "lowest  median highest" not in report("many heads", width=160)


def test_sliding_layers_are_marked_and_left_out_of_the_statistics():
    text = report("sliding")
    assert re.search(r"^ +0~  s s s s ", text, re.MULTILINE)
    assert re.search(r"^ +2   \u00b7 \u00b7 \u00b7 \u00b7 ", text, re.MULTILINE)
    assert "the median of 8 heads that see the whole context" in text
    assert "s  exact: sliding-window layer (~), its cache is constant already (16 heads)" in text


def test_shades_rise_towards_the_tolerance():
    def brightness(error):
        fill = grids.shade(error, 0.07)
        return 0 if fill is None else sum(bytes.fromhex(fill.ground[1:]))

    steps = [brightness(error) for error in (1.2, 0.9, 0.4, 0.2, 0.09, 0.07)]
    assert steps == sorted(set(steps))


def test_alphas_of_heads_are_labelled_noisy():
    assert "Noisy" in report("alphas of heads")
    assert "Alphas of single heads" not in report("built-in")


def test_svg_is_well_formed_stable_and_fetches_nothing(tmp_path):
    measured, chosen = case("sliding")
    for name in ("a.svg", "b.svg"):
        export_svg(report_sections(measured, chosen), "taylorder: made up", tmp_path / name)
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    assert "@font-face" not in text
    assert not re.search(r"url\([\"']?http", text)
    assert text == (tmp_path / "b.svg").read_text(encoding="utf-8")
    assert "Verdict" in text


# Counts and sums


def test_lines_by_order_count_only_what_may_be_chosen():
    measured = synthetic.analysis(layers=2, error=small_error)
    lines = summary.by_order(measured, synthetic.selection(measured))
    assert [line.within for line in lines] == [18, 0, 18, 0, 18, 0, 18, 0], "even orders needed the guard"
    assert [line.pays for line in lines] == [True] * 3 + [False] * 5
    assert lines[2].break_even == 2179
    assert lines[3].errors["zero"][1] > lines[3].errors["zero"][0], "raw beside guarded"
    table = tables.error_by_order(measured, synthetic.selection(measured))
    assert [row[0].text for row in table.rows] == [str(order) for order in range(1, 9)]


def test_caches_are_summed_over_kv_heads_as_the_config_has_them():
    measured = synthetic.analysis(layers=2, error=lambda layer, head, order, expansion: 0.01 if layer else 0.9)
    exact, adapted = savings.cache_bytes(measured, synthetic.selection(measured))
    assert exact == 6 * cost.kv_bytes(64, 64, 8192)
    assert adapted == 3 * cost.kv_bytes(64, 64, 8192) + 3 * cost.state_bytes(64, 64, 1)


def test_sliding_caches_are_bounded_by_their_window():
    measured = synthetic.analysis(layers=2, sliding=lambda layer: layer == 0)
    exact, adapted = savings.cache_bytes(measured, synthetic.selection(measured))
    assert exact == adapted == 3 * cost.kv_bytes(64, 64, 512) + 3 * cost.kv_bytes(64, 64, 8192)


def test_encoders_are_compared_by_multiplications():
    measured = synthetic.analysis(
        layers=1, heads=2, kv_heads=2, head_dim=32, causal=False, max_context=512, error=small_error
    )
    exact, adapted = savings.attention_multiplications(measured, synthetic.selection(measured))
    assert exact == 2 * 512 * 512 * 64
    assert adapted == 2 * 512 * 2 * 33, "order 1: one feature, read once and added once"


def test_near_field_lines_compare_the_same_heads():
    measured, chosen = case("sliding")
    lines = summary.near_field(measured, chosen)
    errors = [synthetic.hard_error(layer, head, 3, "mean") for layer in (2, 5) for head in range(4)]
    assert [line.order for line in lines] == [1, 2, 3, 4]
    assert lines[2].without == pytest.approx(summary.median(errors))
    assert lines[2].near == pytest.approx(summary.median(errors) / 3.1)


def test_needed_orders_are_counted_whatever_they_cost():
    measured, chosen = case("some")
    need = summary.needed(measured, chosen)
    assert sum(need.measured.values()) + need.more == 270
    assert min(need.measured) == 1
    assert need.predicted is not None
    assert need.predicted > 8
    assert need.predicted_bytes == cost.state_bytes(64, 64, need.predicted)


# The verdict


def test_verdict_when_no_head_meets_the_tolerance():
    measured = synthetic.analysis()
    best = min(
        (row for row in measured.candidates if row.order in (1, 3)), key=lambda row: row.relative_l2
    )  # order 2 needed the guard
    layer = best.module.split(".")[2]
    text = told(measured)
    assert text.startswith("No head of 270 meets 7% with an order that pays off at 8,192 tokens (3 or lower).")
    assert (
        f"The closest is layer {layer} head {best.head}: {percent(best.relative_l2, 3)} with order {best.order}, "
        f"expansion {best.expansion};" in text
    )
    assert "every head stays exact: this config changes nothing and saves nothing" in text


def test_verdict_when_some_heads_meet_it():
    text = told_of("some")
    assert text.startswith(
        "30 of 270 heads meet 7% and get an order (order 1: 19, order 3: 11); the other 240 stay exact."
    )
    assert "At 8,192 tokens the caches take 164 MiB instead of 180 MiB (nominal bytes, 9% less)." in text
    assert "the model's loss together is not measured here" in text


@pytest.mark.parametrize(
    ("error", "options", "begins", "says"),
    [
        (small_error, {"layers": 30}, "All 270 heads meet 7% and get an order (order 1: 270).", ""),
        (
            lambda layer, head, order, _: 0.01 if order >= 5 and layer == 0 else 0.5,
            {},
            "No head of 18 meets 7%",
            "9 heads would meet it at a higher order, which does not pay off at 8,192 tokens.",
        ),
        (
            lambda layer, head, *_: 0.01 if head % 3 == 0 else 0.5,
            {"preview": False},
            "6 of 18 heads meet 7%, but in vain: the heads that share a KV cache cannot all have an order.",
            "changes nothing",
        ),
        (
            lambda *_: 0.2,  # 6.5 % with the preview's near field
            {},
            "",
            "With the last 64 and the first 4 keys kept exact, 18 heads would meet 7% at order 3, each taken by itself "
            "on sequences of 1,024 tokens (without: 0).",
        ),
        (lambda *_: math.nan, {}, "No head of 18 meets 7%", ""),
    ],
    ids=["all", "a higher order", "the group forbids it", "a near field", "no numbers"],
)
def test_verdict_tells_how_many_heads_meet_it_and_what_would_help(error, options, begins, says):
    text = told(synthetic.analysis(error=error, **{"layers": 2} | options))
    assert text.startswith(begins)
    assert says in text
    assert "100% less" not in text


def test_verdict_of_an_encoder_speaks_of_multiplications():
    text = told_of("encoder")
    assert "At 512 tokens attention takes 8.3% fewer multiplications." in text
    assert "cache" not in text
    assert "what they do to the model's output together is not measured here" in text


def test_an_encoder_is_not_told_to_measure_a_loss():
    measured, chosen = case("encoder")
    _, reason = verdict.next_command(measured, chosen)
    assert reason == "what this config does to the final hidden states"
    lines = [line for line in report("encoder").splitlines() if "not measured" in line or "nothing to compare" in line]
    assert "final hidden states  not measured" in lines[0]
    assert "one window           nothing to compare: an encoder has no cache" in lines[1]


def test_a_model_that_takes_more_than_text_is_said_to_be_measured_on_text():
    measured, chosen = case("built-in")
    seeing = synthetic.replaced(measured, model=synthetic.replaced(measured.model, unmeasured=("image", "video")))
    text = " ".join(synthetic.report(seeing, chosen, width=200).split())
    assert "seed 0; image and video inputs were not measured" in text


def test_verdict_of_the_alpha_policy_judges_by_the_errors():
    text = told_of("built-in", policy="alpha")
    assert text.startswith("The alphas alone gave 270 heads an order (order 1: 36,")
    assert "None of them meets 7%" in text
    assert re.search(r"take 3\.24 TiB instead of 180 MiB \(nominal bytes, [\d,]+ times as much\)", text)


def test_verdict_counts_sliding_heads_apart():
    text = told_of("sliding")
    assert text.startswith("No head of 8 meets 7%")
    assert "The 16 heads of 4 sliding-window layers stay as they are and are not counted here." in text
    assert told_of("all sliding").startswith("Every layer has a sliding window of its own: all")


def test_verdict_when_no_order_pays_off():
    text = told(synthetic.analysis(layers=2, window=64, sinks=4), context=60)
    assert text.startswith("No order pays off at 60 tokens, whatever its error")


def test_verdict_does_not_praise_a_config_edited_by_hand():
    measured = synthetic.analysis(layers=1, heads=1, kv_heads=1)
    chosen = synthetic.selection(measured, tolerance=0.95)
    assert chosen.heads[0].choice.spec.far.order == 1
    strict = synthetic.replaced(chosen, tolerance=0.07)
    text = " ".join(verdict.sentences(measured, strict))
    assert text.startswith("1 of 1 head has an order (order 1: 1), 0 of which meet 7%.")


@pytest.mark.parametrize(
    ("tolerance", "words"),
    [
        (0.07, "tier int4"),
        (3e-4, "tier fp16"),
        (0.01, "between tiers bf16 (0.2%) and int4 (7%)"),
        (0.2, "looser than tier int4 (7%)"),
        (1e-5, "tighter than tier fp16 (0.03%)"),
    ],
)
def test_tolerances_are_placed_among_the_tiers(tolerance, words):
    assert words in verdict.tier(tolerance)


BUDGETED = "taylorder analyze smollm2-135m --context 1024 --budget 25% --out taylorder-out-25percent"


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("built-in", {}, BUDGETED),
        ("window", {}, BUDGETED),
        ("some", {}, BUDGETED),
        ("built-in", {"policy": "alpha"}, "taylorder analyze smollm2-135m --out taylorder-out"),
        ("all sliding", {}, "taylorder show taylorder-out"),
        (
            "built-in",
            {"tolerance": 0.01, "context": 4096},
            "taylorder analyze smollm2-135m --tolerance 0.01 --context 4096 --budget 25% --out taylorder-out-25percent",
        ),
    ],
)
def test_next_command_repeats_what_was_asked(name, options, expected):
    command, _ = verdict.next_command(*case(name, **options))
    assert command == expected


@pytest.mark.parametrize("name", MODELS)
def test_next_command_is_one_that_exists(name):
    command, _ = verdict.next_command(*case(name))
    words = shlex.split(command)
    assert words[0] == "taylorder"
    subcommand = get_command(app).commands[words[1]]
    known = {option for parameter in subcommand.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known
    shown = report(name).replace("\\\n", "")
    assert command in " ".join(shown.split())


def test_next_command_quotes_names_and_texts():
    measured = synthetic.analysis(layers=2, name="my models/a b", source="one.txt, two words.txt")
    command, _ = verdict.next_command(measured, synthetic.selection(measured))
    words = shlex.split(command)
    assert words[2:7] == ["my models/a b", "--text", "one.txt", "--text", "two words.txt"]


def warned(**calibration):
    """The verdict and the whole report on a model whose calibration says so, 512 rows measured."""
    measured = synthetic.analysis(layers=2)
    measured = replace(measured, calibration=replace(measured.calibration, **calibration))
    chosen = synthetic.selection(measured)
    text = synthetic.report(measured, chosen, width=80)
    return verdict.sentences(measured, chosen), " ".join(text.split()), verdict.next_command(measured, chosen)[0]


def test_an_untrained_model_is_called_one_first():
    told, text, _ = warned(nll=10.5, vocabulary=49152)
    assert told[0].startswith(
        "The model as it is loses 10.50 nats per token, where guessing among its 49,152 tokens loses 10.80: it looks "
        "untrained"
    )
    assert told[0] in text
    assert not any("untrained" in sentence for sentence in warned(nll=9.7, vocabulary=49152)[0])


def test_text_that_the_tokenizer_does_not_know_is_called_so():
    assert warned(unknown_share=0.25)[0][0].startswith("25% of the calibration text is unknown to the tokenizer")
    assert not any("unknown" in sentence for sentence in warned(unknown_share=0.1)[0])


def test_the_rows_with_far_keys_are_always_told():
    assert "rows 512 of 512 measured query rows have far keys" in warned()[1]
    told, text, _ = warned(far_share=0.25)
    assert "rows 128 of 512 measured query rows have far keys" in text
    assert told[0].startswith("Only 128 of 512 measured query rows have keys outside of the near field")
    assert "exact: too few of the measured rows have keys outside of the near field" in text
    assert not any("meet" in sentence for sentence in told)


def test_sequences_that_begin_with_bos_are_said_to():
    assert "tokens, each begun with BOS, 64 query rows" in warned(bos=2)[1]
    assert "BOS" not in warned()[1]
