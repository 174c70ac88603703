"""Keys of config.json that `transformers` reads for models of every family.

Taken from transformers 5.24 (configuration_utils, modeling_utils, masking_utils,
cache_utils, modeling_rope_utils, GenerationConfig); tests/parity/test_config_keys.py compares them
with the version that is installed. A key that is neither here nor in the family is not read.
"""

from collections.abc import Mapping
from typing import Any

from lm_jax.convert.values import short
from lm_jax.errors import UserError


def words(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())


# Read, without effect on the logits: names and versions, defaults of generation, layers that
# predict further tokens, the labels and sizes of other heads, training, where and how it is
# computed, ids that only generation and the tokenizer act on. Code that one of them names is never
# run.
NO_EFFECT = words(
    """
    architectures auto_map dtype model_type name_or_path tokenizer_class torch_dtype torchscript
    transformers_version

    assistant_confidence_threshold assistant_lookbehind bad_words_ids begin_suppress_tokens
    cache_implementation compile_config diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id generation_config
    length_penalty max_length max_new_tokens min_length no_repeat_ngram_size num_assistant_tokens
    num_assistant_tokens_schedule num_beam_groups num_beams num_return_sequences output_scores
    prefix remove_invalid_values repetition_penalty return_dict_in_generate suppress_tokens
    target_lookbehind task_specific_params temperature top_k top_p typical_p use_cache

    first_k_dense_replace mtp_hidden_states_first mtp_layer_types mtp_mlp_layer_types
    mtp_per_layer_config num_mtp_layers

    classifier_dropout finetuning_task hidden_dropout id2label label2id num_labels problem_type
    summary_last_dropout tie_last_hidden_states token_classification_bias unpadded_vocab_size

    gradient_checkpointing

    allow_all_kernels attn_implementation chunk_size_feed_forward device_map distributed_config
    experts_implementation fusion_config kernel_config output_attentions output_hidden_states
    return_dict use_kernels

    bos_token_id decoder_start_token_id eos_token_id pad_token_id sep_token_id
    """
)
ONLY: Mapping[str, Any] = {  # keys of which one value is supported
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "tie_encoder_decoder": False,
    "pruned_heads": {},
    "cross_attention_hidden_size": None,
}
FULL, SLIDING = "full_attention", "sliding_attention"
ANYWHERE: Mapping[str, str] = {  # their effect in a family that has no option of that name
    "attention_chunk_size": "its cache would forget what is in earlier chunks.",
    "is_causal": "its tokens would see each other both ways; only true.",
    "kv_sharing_modes": "layers would share keys and values.",
    "layer_types": "its layers are all of one kind.",
    "mlp_layer_types": "its layers are all of one kind.",
    "partial_rotary_factor": "a part of each head would not be rotated; only 1.0.",
    "per_layer_config": "layers would have options of their own.",
    "quantization_config": "the weights are quantized; save them without, in float32 or bfloat16.",
    "sliding_window": "it has no window, but its cache would; only null.",
    "transformers_weights": "the weights would come from the file that it names; only null.",
}


def harmless(key: str, value: Any, values: Mapping[str, Any]) -> bool:
    """Whether a key of ANYWHERE has no effect at this value, beside the other `values`."""
    if key == "is_causal":
        return value is True
    if key == "partial_rotary_factor":
        return value is None or value == 1
    if key == "sliding_window":
        most = values.get("max_position_embeddings", values.get("n_positions"))
        numbers = isinstance(value, int) and isinstance(most, int)
        return value is None or (numbers and value >= most > 0)
    if key == "layer_types" and isinstance(value, list):
        kind = SLIDING if values.get("sliding_window") else FULL
        return all(one == kind for one in value)
    return value in (None, {}, [])


def renamed(values: dict[str, Any], aliases: Mapping[str, str], where: str) -> dict[str, Any]:
    """`values` under the names of the family; raises UserError where two names differ."""
    found = {key: value for key, value in values.items() if key not in aliases}
    for alias, key in aliases.items():
        if alias not in values:
            continue
        if key in found and found[key] != values[alias]:
            raise UserError(
                f"{where}: {alias}={short(values[alias])}: is another name for {key}, which is "
                f"{short(found[key])}."
            )
        found[key] = values[alias]
    return found


def unread_line(names: list[str], architecture: str, where: str) -> str:
    """The line that is printed about keys that are not read, of bounded length."""
    shown = ", ".join(short(name).strip("'\"") for name in names[:12])
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"{where}: passed over, {architecture} of transformers does not read: {shown}{more}"
