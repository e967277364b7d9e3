"""What rheo does with every setting of SGLang 0.5.17 to 0.5.23: honoured, irrelevant to it, or refused.

A test holds these tables against the fields of ``ServerArgs`` of the oldest and the newest version: each field is in
exactly one of them.
"""

from __future__ import annotations

from typing import Any

CPU_ENGINE = "SGLANG_USE_CPU_ENGINE"
"""SGLang's own environment variable: 1 makes it run on the CPU."""

HONOURED_BY_REASON: dict[str, str] = {
    "rheo's own choice is made, checked or completed (validate.py)": """
        attention_backend radix_cache_backend page_size kv_cache_dtype cuda_graph_config disable_cuda_graph
        disable_prefill_cuda_graph disable_decode_cuda_graph device
    """,
    "Sizes of the logical space, of batches and of chunks": """
        max_total_tokens max_running_requests mem_fraction_static context_length chunked_prefill_size
        max_prefill_tokens prefill_max_requests pp_max_micro_batch_size num_reserved_decode_tokens
        enable_dynamic_chunking
    """,
    "SGLang's radix cache and its events, in which rheo replaces one component": """
        disable_radix_cache radix_eviction_policy radix_eviction_policy_config strip_thinking_cache
        kv_events_config enable_cache_report _radix_eviction_policy_explicitly_set
    """,
    "The storage tier under DRAM (storage/), which checks that it can serve with them (validate.py)": """
        hicache_storage_backend hicache_storage_backend_extra_config hicache_storage_prefetch_policy
        hicache_write_policy hicache_host_memory_mode
    """,
    "CUDA graphs of decode: every batch size is captured in every shape of the step": """
        cuda_graph_bs_decode cuda_graph_max_bs_decode disable_cuda_graph_padding enable_profile_cuda_graph
        enable_cudagraph_gc
    """,
    "Ranks: every rank holds the pages of its own layers and KV heads": """
        tp_size pp_size pp_async_batch_depth dp_size attn_dp_size enable_dp_attention
        enable_dp_attention_local_control_broadcast nnodes node_rank numa_node
    """,
    "Scheduling, which works in logical pages": """
        abort_on_priority_when_disabled default_priority_value disable_overlap_schedule
        disable_priority_preemption enable_prefill_delayer enable_priority_scheduling max_queued_requests
        min_free_slots_delay num_continuous_decode_steps prefill_decode_interval
        prefill_decode_interval_min_bs prefill_delayer_forward_passes_buckets prefill_delayer_max_delay_ms
        prefill_delayer_max_delay_passes prefill_delayer_queue_min_ratio
        prefill_delayer_token_usage_low_watermark prefill_delayer_wait_seconds_buckets
        priority_scheduling_preemption_threshold retraction_policy schedule_conservativeness
        schedule_low_priority_values_first schedule_policy scheduler_recv_interval
    """,
    "The model: what its loaded attention layers need is checked (validate.py)": """
        enable_multimodal model_path dtype json_model_override_args model_impl
        enable_precise_embedding_interpolation
    """,
}
"""Settings that rheo follows, or that change what it is asked to do, by how; names separated by spaces."""

IRRELEVANT_BY_REASON: dict[str, str] = {
    "Read only by a feature that is refused": """
        _speculative_draft_quantization_explicitly_set _swa_full_tokens_ratio_explicitly_set
        aux_hidden_state_capture cp_strategy dcp_comm_backend dcp_replicate_q_proj
        decoupled_spec_bind_endpoint decoupled_spec_connect_endpoints decoupled_spec_rank
        decrypted_draft_config_file disable_hybrid_swa_memory disaggregation_bootstrap_port
        disaggregation_decode_allocation_policy disaggregation_decode_enable_radix_cache
        disaggregation_decode_extra_slots disaggregation_decode_host_receive_threshold
        disaggregation_decode_polling_interval disaggregation_decode_retraction_backup
        disaggregation_enable_kv_checksum disaggregation_ib_device disaggregation_transfer_backend
        dllm_algorithm_config dllm_fdfo dsa_prefill_cp_mode enable_cp_decode_attn_tp
        enable_cp_tp_group_sharing enable_decoder_swa_bounded_replay enable_draft_weights_cpu_backup
        enable_dsa_cache_layer_split enable_encoder_swa_bounded_replay enable_linker_mla_dedup
        enable_return_aux_hidden_states enable_torch_compile_debug_mode flexkv_config_file
        hicache_host_memory_fraction hicache_io_backend hicache_mem_layout
        hicache_ratio hicache_size hicache_storage_prefetch_retry_max_attempts
        hicache_storage_prefetch_retry_poll_interval hisparse_config kv_canary_real_data
        kv_canary_sweep_interval lmcache_config_file
        mooncake_ib_device optimistic_prefill_attempts pdmux_config_path prefill_cp_mode
        prefill_kv_cache_dequant_dtype return_aux_hidden_state_layer_ids sm_group_num spec_trace_dir
        speculative_accept_threshold_acc speculative_accept_threshold_single speculative_adaptive
        speculative_adaptive_config speculative_attention_mode speculative_boundary_reduction
        speculative_dflash_block_size speculative_domino_candidate_pool_size
        speculative_draft_attention_backend speculative_draft_kv_cache_dtype speculative_draft_load_format
        speculative_draft_model_path speculative_draft_model_quantization speculative_draft_model_revision
        speculative_draft_sink_size speculative_draft_window_size speculative_dsa_topk_backend
        speculative_dspark_align_verify_tokens_to_graph_tier speculative_dspark_block_size
        speculative_dspark_confidence_sts_path speculative_dspark_sps_table_path speculative_eagle_topk
        speculative_enable_w4a4_mxfp4_megamoe speculative_moe_a2a_backend speculative_moe_runner_backend
        speculative_ngram_capacity speculative_ngram_external_corpus_max_tokens
        speculative_ngram_external_corpus_path speculative_ngram_external_sam_budget
        speculative_ngram_match_type speculative_ngram_max_bfs_breadth speculative_ngram_max_trie_depth
        speculative_ngram_min_bfs_breadth speculative_num_draft_tokens speculative_num_steps
        speculative_skip_dp_mlp_sync speculative_token_map speculative_use_block_verification
        speculative_use_rejection_sampling swa_full_tokens_ratio swa_prefix_tails
        tbo_token_distribution_threshold torch_compile_max_bs unified_cache_external_linker_backend
        unified_cache_external_linker_config uno_lora_path
    """,
    "Kernels of SGLang's other attention backends, and models that are refused": """
        c128_page_size disable_chunked_prefix_cache dsa_decode_backend dsa_paged_mqa_logits_backend
        dsa_prefill_backend dsa_topk_backend dsa_triton_union dsv4_attn_backend dsv4_prefill_backend
        enable_deepseek_v4_fp4_indexer enable_dsa_fused_indexer enable_int8_mamba_checkpoint
        enable_linear_replayssm enable_linear_replayssm_spec enable_mamba_cache_stochastic_rounding
        enable_return_indexer_topk enable_scattered_sconv flashinfer_mla_disable_ragged int8_mamba_ckpt_size
        linear_attn_backend linear_attn_decode_backend linear_attn_prefill_backend linear_attn_verify_backend
        linear_replayssm_cache_len mamba_backend mamba_cache_philox_rounds mamba_full_memory_ratio
        mamba_max_states_per_path mamba_radix_cache_strategy mamba_ssm_dtype mamba_track_interval
        max_mamba_cache_size ple_offload_backend ple_offload_dir ple_offload_embedding qsa_indexer_dtype
        triton_attention_num_kv_splits triton_attention_reduce_in_fp32 triton_attention_split_tile_size
        uses_mamba_radix_cache
    """,
    "MLP, experts and their ranks": """
        deepep_config deepep_dispatcher_output_dtype deepep_mode deepep_v2_mode
        disable_flashinfer_cutlass_moe_fp4_allgather disable_shared_experts_fusion dwdp_size
        elastic_ep_backend elastic_ep_initial_size elastic_ep_rejoin elastic_ep_scale_timeout
        enable_dense_mlp_attn_tp enable_elastic_expert_backup enable_eplb enable_expert_distribution_metrics
        enable_fused_moe_sum_all_reduce enable_megamoe_for_layernorm_sp enable_paged_experts
        enable_return_routed_experts enable_shared_experts_attn_tp enable_single_batch_overlap
        enable_w4a4_mxfp4_megamoe enable_waterfill enforce_shared_experts_fusion ep_dispatch_algorithm
        ep_join_mode ep_join_rank_offset ep_num_redundant_experts ep_size eplb_algorithm
        eplb_min_rebalancing_utilization_threshold eplb_rebalance_layers_per_chunk
        eplb_rebalance_num_iterations expert_balancedness_report_mode expert_distribution_recorder_buffer_size
        expert_distribution_recorder_mode experts_shared_outer_loras flashinfer_a2a_dispatch_type
        flashinfer_mxfp4_moe_precision fuseep_mode init_expert_location kt_cpuinfer
        kt_max_deferred_experts_per_token kt_method kt_num_gpu_experts kt_threadpool_count kt_weight_path
        lora_use_virtual_experts max_ep_size moe_a2a_backend moe_dense_tp_size moe_dp_size moe_runner_backend
        paged_experts_num_resident shared_experts_tp_size
    """,
    "Weights, their quantization, loading, updates and offloading": """
        bf16_gemm_backend checkpoint_engine_wait_weights_before_ready cpu_offload_gb custom_weight_loader
        decrypted_config_file delete_ckpt_after_loading download_dir enable_lora enable_lora_overlap_loading
        enable_tf32_matmul enable_weights_cpu_backup engine_info_bootstrap_port forward_hooks
        fp4_gemm_runner_backend fp8_gemm_runner_backend load_format lora_backend lora_drain_wait_threshold
        lora_eviction_policy lora_paths lora_strict_loading lora_target_modules max_loaded_loras
        max_lora_chunk_size max_lora_rank max_loras_per_batch model_checksum model_config_parser
        model_loader_extra_config modelexpress_config modelopt_checkpoint_restore_path
        modelopt_checkpoint_save_path modelopt_export_path modelopt_quant offload_group_size offload_mode
        offload_num_in_group offload_prefetch_step quantization quantize_and_serve
        remote_instance_weight_loader_backend remote_instance_weight_loader_seed_instance_ip
        remote_instance_weight_loader_seed_instance_service_port
        remote_instance_weight_loader_send_weights_group_ports
        remote_instance_weight_loader_start_seed_via_transfer_engine revision rl_quant_profile
        startup_weight_load_mode torchao_config trust_remote_code weight_cache_mode weight_cache_socket
        weight_cache_timeout weight_loader_disable_mmap weight_loader_drop_cache_after_load
        weight_loader_prefetch_checkpoints weight_loader_prefetch_num_threads weight_version
    """,
    "Layers other than attention, and collectives between ranks": """
        base_gpu_id boundary_reduction constrained_json_disable_any_whitespace
        constrained_json_max_whitespace_cnt constrained_json_whitespace_pattern
        disable_aiter_allreduce_fusion_in_decode disable_aiter_allreduce_fusion_in_prefill
        disable_attn_tp_gather disable_custom_all_reduce disable_flashinfer_autotune
        disable_outlines_disk_cache dist_init_addr dist_timeout enable_aiter_allreduce_fusion
        enable_attn_tp_input_scattered enable_custom_logit_processor enable_dp_lm_head
        enable_flashinfer_allreduce_fusion enable_fp32_lm_head enable_fused_qk_norm_rope enable_layernorm_sp
        enable_mscclpp enable_nccl_nvls enable_p2p_check enable_quant_communications enable_strict_thinking
        enable_symm_mem enable_torch_symm_mem enable_tp_lm_head_all_to_all enable_watermark
        enforce_disable_flashinfer_allreduce_fusion flashinfer_allreduce_fusion_backend
        flashinfer_autotune_skip_ops gpu_id_step grammar_backend mlx_enable_sampling nccl_port pre_warm_nccl
        preferred_sampling_params random_seed sampling_backend sampling_defaults sampling_mask_max_tokens
        watermark_config watermark_context_window watermark_default_enabled watermark_enforce_all
        watermark_key watermark_key_b watermark_max_probability watermark_mixing_probability
    """,
    "Images, sound and their encoders, before the language model": """
        allowed_media_domains asr_max_buffer_seconds asr_max_concurrent_sessions disable_fast_image_processor
        enable_adaptive_dispatch_to_encoder enable_broadcast_mm_inputs_process enable_mm_global_cache
        enable_prefix_mm_cache encoder_bootstrap_port encoder_only encoder_register_urls
        encoder_transfer_backend encoder_urls image_processor_backend keep_mm_feature_on_device
        language_model_only language_only limit_mm_data_per_request media_url_max_file_size_mb
        mm_attention_backend mm_enable_dp_encoder mm_feature_transport mm_global_cache_backend
        mm_io_worker_num mm_preprocess_cache_size_mb mm_process_config mm_processor_worker_num
        trust_mm_content_hashes
    """,
    "Server, tokenizer, chat format, logs and metrics": """
        admin_api_key allow_auto_truncate api_key batch_notify_size bucket_e2e_request_latency
        bucket_inter_token_latency bucket_time_to_first_token chat_template completion_template
        crash_dump_folder custom_sigquit_handler debug_tensor_dump_input_file debug_tensor_dump_layers
        debug_tensor_dump_output_folder decode_log_interval default_chat_template_kwargs
        detokenizer_worker_num disable_tokenizer_batch_decode dynamic_batch_tokenizer_batch_size
        dynamic_batch_tokenizer_batch_timeout enable_dynamic_batch_tokenizer enable_forward_pass_metrics
        enable_http2 enable_http_worker_reuseport enable_layerwise_nvtx_marker enable_metrics
        enable_metrics_for_all_schedulers enable_mfu_metrics enable_request_time_stats_logging
        enable_response_store enable_return_hidden_states enable_ssl_refresh enable_tokenizer_batch_encode
        enable_trace export_metrics_to_file export_metrics_to_file_dir extra_metric_labels fastapi_root_path
        file_storage_path forward_pass_metrics_ipc_name forward_pass_metrics_worker_id gated_launch_port
        gc_threshold gc_warning_threshold_secs generation_tokens_buckets grpc_mode grpc_port
        grpc_response_timeout_secs grpc_worker_threads hf_chat_template_name host
        http2_initial_connection_window_size http2_max_concurrent_streams incremental_streaming_output
        load_balance_method load_publish_endpoint load_snapshot_publish_interval log_level log_level_http
        log_requests log_requests_format log_requests_level log_requests_target msprobe_dump_config
        otlp_service_name otlp_traces_endpoint port prompt_tokens_buckets reasoning_parser
        return_hidden_states_mode return_input_ids return_output_ids served_model_name show_time_cost sidecar
        sidecar_args skip_server_warmup skip_tokenizer_init sleep_on_idle smg_grpc_mode smg_http_sidecar_port
        soft_watchdog_timeout ssl_ca_certs ssl_certfile ssl_keyfile ssl_keyfile_password stat_loggers
        stream_interval stream_response_default_include_usage tokenizer_backend
        tokenizer_metrics_allowed_custom_labels tokenizer_metrics_custom_labels_header tokenizer_mode
        tokenizer_path tokenizer_worker_num tool_call_parser tool_server trace_modules
        trust_request_chat_template uvicorn_access_log_exclude_prefixes warmups watchdog_timeout
    """,
}
"""Settings that do not reach the KV cache or attention, by what they are of; names separated by spaces."""

REFUSED_BY_REASON: dict[str, dict[str, tuple[Any, ...]]] = {
    "The KV cache or the radix cache of another feature, in the place of rheo's": {
        "disaggregation_decode_enable_offload_kvcache": (False,),
        "disaggregation_mode": (None, "null"),
        "enable_flexkv": (False,),
        "enable_hierarchical_cache": (False,),
        "enable_hisparse": (False,),
        "enable_kv_cache_sharding": (False,),
        "enable_lmcache": (False,),
        "enable_memory_saver": (False,),
        "enable_page_major_kv_layout": (False,),
        "enable_pd_role_switch": (False,),
        "enable_session_radix_cache": (False,),
        "enable_streaming_session": (False,),
        "enable_unified_cache_external_linker": (False,),
        "enable_unified_memory": (False,),
        "kv_canary": (None, "none"),
        "prefill_only_disable_kv_cache": (False,),
        "quantization_param_path": (None,),
    },
    "Another attention in the place of rheo's, or in a part of the steps": {
        "decode_attention_backend": (None,),
        "decoupled_spec_role": (None, "null"),
        "dllm_algorithm": (None,),
        "enable_amd_monokernel": (False,),
        "enable_lean_attention": (None, False),
        "enable_mis": (False,),
        "enable_multi_layer_eagle": (False,),
        "enable_nvidia_megakernel": (False,),
        "prefill_attention_backend": (None,),
        "speculative_algorithm": (None,),
    },
    "Batches or sequences divided in ways that a decode step of rheo is not made for": {
        "attn_cp_size": (None, 1),
        "dcp_size": (None, 1),
        "enable_dsa_prefill_context_parallel": (False,),
        "enable_mixed_chunk": (False,),
        "enable_pdmux": (False,),
        "enable_prefill_context_parallel": (False,),
        "enable_prefill_cp": (False,),
        "enable_two_batch_overlap": (False,),
    },
    "Graphs and compilers that rheo's steps are not captured by": {
        "cuda_graph_backend_decode": (None, "full", "disabled"),
        "cuda_graph_backend_prefill": (None, "disabled"),
        "cuda_graph_bs_prefill": (None,),
        "cuda_graph_max_bs_prefill": (None,),
        "cuda_graph_max_seq_len_prefill": (None,),
        "cuda_graph_prefill_max_context": (None,),
        "cuda_graph_tc_compiler": (None,),
        "debug_cuda_graph": (False,),
        "enable_torch_compile": (False,),
    },
    "Processes that do not inherit the environment, by which they get rheo's settings": {
        "use_ray": (False,),
    },
    "Models that decode nothing": {
        "is_embedding": (False,),
    },
    "Results that do not depend on the batch, which pages in different places do not give": {
        "enable_deterministic_inference": (False,),
        "rl_on_policy_target": (None,),
    },
}
"""Settings that rheo cannot serve with, by what they ask for, each with the values that leave them off."""

HONOURED = [name for names in HONOURED_BY_REASON.values() for name in names.split()]
IRRELEVANT = [name for names in IRRELEVANT_BY_REASON.values() for name in names.split()]
REFUSED = {name: off for settings in REFUSED_BY_REASON.values() for name, off in settings.items()}
