"""Keys that every Hugging Face config may carry, whatever the family.

transformers has written all of them into config.json at one time, and so have tools around it.
"""

from __future__ import annotations

from typing import Any

_FILES_AND_TOOLS = """
    _commit_hash _name_or_path architectures auto_map dtype finetuning_task id2label label2id
    max_sequence_length model_max_length model_type name_or_path num_labels prefix problem_type
    task_specific_params tokenizer_class torch_dtype transformers.js_config transformers_version
    unsloth_fixed unsloth_version
"""
# How the same numbers are computed and returned.
_EXECUTION = """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal
    _experts_implementation _experts_implementation_internal _flash_attn_2_enabled
    attn_implementation chunk_size_feed_forward experts_implementation is_decoder
    output_attentions output_hidden_states output_router_logits return_dict
    tie_last_hidden_states torchscript use_bfloat16 use_cache
"""
_TRAINING = """
    attention_dropout gradient_checkpointing hidden_dropout initializer_range router_aux_loss_coef
    tf_legacy_loss
"""
# What a token is drawn by, and where text begins and ends; eos_token_id is read.
_GENERATION = """
    assistant_confidence_threshold assistant_early_exit assistant_lookbehind bad_words_ids
    begin_suppress_tokens bos_token_id cache_config cache_implementation constraints
    decoder_start_token_id diversity_penalty do_sample dola_layers early_stopping
    encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff
    exponential_decay_length_penalty force_words_ids forced_bos_token_id forced_decoder_ids
    forced_eos_token_id generation_kwargs guidance_scale length_penalty low_memory max_length
    max_matching_ngram_size max_new_tokens max_time min_length min_new_tokens min_p
    no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule num_beam_groups
    num_beams num_return_sequences output_logits output_scores pad_token_id penalty_alpha
    prompt_lookup_num_tokens remove_invalid_values renormalize_logits repetition_penalty
    return_dict_in_generate sep_token_id sequence_bias stop_strings suppress_tokens
    target_lookbehind temperature token_healing top_h top_k top_p typical_p watermarking_config
"""

# They change no logits, whatever their value. quantization_config, which does, is read by
# model.encodings.
IRRELEVANT = frozenset(
    "quantization_config".split()
    + _FILES_AND_TOOLS.split()
    + _EXECUTION.split()
    + _TRAINING.split()
    + _GENERATION.split()
)

# Parts that no family has, and the value that says so; any other one is refused.
ABSENT_PARTS: dict[str, Any] = {
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "tie_encoder_decoder": False,
}
