"""Fixtures that several test files share."""

from __future__ import annotations

import gc
import os
import re
from collections import defaultdict
from pathlib import Path
from zlib import crc32

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: workers share the cores, and tiny models lose by waiting for each other


# Of models of one family (with and without a cache, encoder and its decoder) the short run takes one or two.
SECOND = {"bert-cls", "t5-gated", "t5-decoder", "bart-decoder", "opt-past", "phi-past", "mistral", "mistral-past", "qwen2", "qwen3-past", "gemma-past", "gemma-kv2",
          "gptj-past", "falcon-past", "falcon-kv2", "gpt-neox", "clip-vision", "deit"}  # fmt: skip


# What the newer exporter of PyTorch writes of these models is left to the slow tests: it takes 8 to 20 seconds each.
LATER = re.compile(r"\b(gptj|roberta|opt|phi|qwen3|gemma|t5|t5-encoder|bart|captions|moe-listed|after-plain-scattered|vit)-dynamo\b|dynamo-(captions|qwen3|vit)\b|\bvit-float64\b")

# Of the cases of these tests the short run takes one in so many, always the same ones.
ONE_IN = {
    2: {"test_a_broken_plan_is_not_written", "test_a_gain_at_the_end_of_a_branch", "test_a_grown_folder_says_the_same_words", "test_a_grown_graph_is_like_a_native_one",
        "test_a_grown_model_becomes_a_folder_of_its_new_sizes", "test_a_list_of_modules_keeps_its_numbers", "test_a_naive_growth_is_no_rounding", "test_a_source_becomes_a_folder",
        "test_block_size_and_threads_do_not_matter", "test_dims_of_the_model_on_the_line_are_completed", "test_documents_have_the_keys_of_the_json_page", "test_every_growth_is_exact_up_to_the_type",
        "test_every_mutant_is_another_function", "test_every_spelling_of_a_norm_grows", "test_graphs_of_other_projects", "test_grown_code_and_grown_graph_agree", "test_it_writes_the_same_text",
        "test_learned_positions_of_known_models", "test_names_say_what_a_stream_reads", "test_netron_draws_every_node", "test_other_opsets_static_axes_and_external_data",
        "test_positions_grow_with_other_sizes", "test_the_command_of_the_record_makes_the_same_file", "test_the_example_in_the_help_runs", "test_the_float_form_grows", "test_the_loss_stays",
        "test_what_follows_no_rule_is_refused", "test_what_others_wrote_there_is_read_with_care", "test_zero_is_the_zero_point"},
    3: {"test_a_fused_mixture_grows", "test_a_merged_decoder_grows_with_the_others", "test_a_planted_fill_is_caught", "test_a_slice_of_the_table", "test_a_tied_embedding_stays_tied",
        "test_an_example_trains_in_two_processes", "test_both_decoders_hold_one_model", "test_code_and_graph_agree", "test_copies_learn", "test_each_width_is_named", "test_every_bound_goes_on",
        "test_every_change_is_another_program", "test_every_command_does_what_is_said_of_it", "test_every_depth_of_every_model", "test_every_growth_is_right_or_refused_with_a_reason",
        "test_gains_that_are_stored_as_their_distance_from_one_or_multiplied_by_the_deviation_first", "test_gains_that_branches_end_with", "test_large_tensors_do_not_depend_on_the_block_size",
        "test_layers_of_torch_carry_the_weights", "test_layers_that_share_their_matrices", "test_names_that_are_taken_stay_with_who_has_them", "test_new_blocks_learn",
        "test_new_layers_are_counted_whole", "test_new_parameters_learn", "test_new_rows_hold_what_a_wider_stream_wants", "test_one_grows_alone", "test_other_forms",
        "test_queries_keys_and_values_that_are_stacked", "test_real_graphs_get_one_more_layer", "test_several_sizes_at_once", "test_sizes_and_certificate", "test_stacks_of_every_model",
        "test_the_architecture_is_what_the_model_is", "test_the_code_of_the_python_pages_runs", "test_the_count_of_new_parameters_is_true", "test_the_goal_is_met",
        "test_the_loss_follows_the_native_model", "test_the_screens_are_what_the_commands_show", "test_transformers_makes_the_grown_model_from_the_grown_config",
        "test_two_processes_end_where_one_does", "test_vectors_that_the_exporter_merged", "test_what_is_no_number_stays_where_it_is", "test_what_is_not_broken_is_exact_and_learns",
        "test_without_growth_every_export_is_byte_identical"},
    5: {"test_a_square_mask", "test_every_growth_of_every_model", "test_every_spelling_of_attention_grows", "test_groups_of_one_are_still_the_same_operator", "test_growths_are_what_they_were",
        "test_more_experts_are_the_same_function", "test_no_random_graph_grows_wrong", "test_old_logits_stay_and_new_words_are_sane", "test_one_projection_for_attention_and_feed_forward",
        "test_slices_that_end_at_the_size_as_a_number", "test_the_message_is_produced", "test_what_a_rule_says_is_so", "test_width_grows_in_a_mixture"},
}  # fmt: skip
PART = {test: n for n, tests in ONE_IN.items() for test in tests}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is about a model of `SECOND` is slow, what matches `LATER`, and of the tests of `ONE_IN` what is left out of the short run; these have the mark `part`, too."""
    cases = defaultdict(list)
    for item in items:
        for value in item.callspec.params.values() if hasattr(item, "callspec") else ():
            first = value[0] if isinstance(value, tuple) and value else value
            name = getattr(first, "name", first)
            if isinstance(name, str) and name in SECOND:
                item.add_marker(pytest.mark.slow)
        if LATER.search(item.nodeid):
            item.add_marker(pytest.mark.slow)
        if not item.get_closest_marker("slow"):
            cases[item.nodeid.split("[")[0]].append(item)
    whole = len({item.path for item in items}) == len([*Path(__file__).parent.glob("test_*.py")])
    if whole and (lost := PART.keys() - {name.split("::")[-1] for name in cases}):
        raise pytest.UsageError(f"ONE_IN in tests/conftest.py names tests that are not there: {', '.join(lost)}")
    for name, found in cases.items():
        found.sort(key=lambda item: crc32(item.nodeid.encode()))  # neighbours are often alike
        for item in found[-(-len(found) // PART.get(name.split("::")[-1], 1)):]:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.part)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """A file goes to one worker: two that share one would each make its models, or wait for the other's export."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


def pytest_collection_finish() -> None:
    """What the libraries hold stays: the collector of garbage, which would look through all of it again and again, leaves it out."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def snapshot():
    """A function: everything in a folder and below it, by relative name, as (bytes, time of the last change)."""

    def take(folder: Path) -> dict[str, tuple[bytes, int]]:
        files = [Path(root) / name for root, _, names in os.walk(folder) for name in names]
        return {str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}

    return take
