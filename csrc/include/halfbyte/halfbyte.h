/* halfbyte's C interface: open a model, give it token ids, get tokens, logits or embeddings back.
 *
 *   hb_model* model = NULL;
 *   if (hb_model_open("model.gguf", NULL, &model) != HB_OK) { puts(hb_last_error()); return 1; }
 *   hb_generate(model, prompt, prompt_size, NULL, on_token, NULL);
 *   hb_model_close(model);
 *
 * Errors: every function that can fail returns an hb_status; hb_last_error() then says where, what was expected, what was
 * found and what to do. Outputs are written on HB_OK alone. A null pointer where none is allowed is HB_INVALID_ARGUMENT.
 * Ownership: what a *_create or *_open function hands out is the caller's, to be given to its *_free or *_close once; these
 * accept NULL. Arrays and texts passed in are copied or read during the call. Texts are UTF-8 and end with a zero byte.
 * Threads: a model may be used by many threads at once; an options object and a generation by one thread at a time.
 * No C++ exception leaves a function, and none must leave a callback. No function prints, aborts or exits.
 */
#ifndef HALFBYTE_H
#define HALFBYTE_H

#include <stddef.h>
#include <stdint.h>

#define HB_VERSION_MAJOR 0
#define HB_VERSION_MINOR 1
#define HB_VERSION_PATCH 0

#if defined(__GNUC__) || defined(__clang__)
#define HB_API __attribute__((visibility("default")))
#else
#define HB_API
#endif

#ifdef __cplusplus
#define HB_NOEXCEPT noexcept
extern "C" {
#else
#define HB_NOEXCEPT
#endif

typedef enum hb_status {
    HB_OK = 0,
    HB_INVALID_ARGUMENT = 1, /* a wrong shape, value or name; a null pointer */
    HB_NOT_FOUND = 2,        /* a file, tensor, field, adapter or device is missing */
    HB_CORRUPT = 3,          /* bytes that contradict their own format */
    HB_UNSUPPORTED = 4,      /* valid input that this build cannot run exactly; the text names the field */
    HB_OUT_OF_MEMORY = 5,
    HB_IO = 6,        /* the operating system refused: permission, full disk, unreadable file */
    HB_CANCELLED = 7, /* a callback asked to stop */
    HB_INTERNAL = 8   /* a bug in halfbyte */
} hb_status;

typedef struct hb_options hb_options;                   /* how a model is opened */
typedef struct hb_model hb_model;                       /* weights ready to run, with their adapters and vocabulary */
typedef struct hb_generate_options hb_generate_options; /* how tokens are chosen, and when to stop */
typedef struct hb_generation hb_generation;             /* one running generation */

/* Of the library: "0.1.0". The numbers above are those of this header. */
HB_API const char* hb_version(void) HB_NOEXCEPT;
/* The text of this thread's last error; "" before the first. Valid until the next failing call of this thread. */
HB_API const char* hb_last_error(void) HB_NOEXCEPT;
/* "HB_NOT_FOUND"; "unknown" for a number that is no status. */
HB_API const char* hb_status_name(int status) HB_NOEXCEPT;

/* --- opening a model -------------------------------------------------------------------------------------------- */

/* Called by the thread that opens a model, `done` growing from 0 to 1. Non-zero stops: HB_CANCELLED. */
typedef int (*hb_progress_callback)(double done, void* user);

HB_API int hb_options_create(hb_options** options) HB_NOEXCEPT;
HB_API void hb_options_free(hb_options* options) HB_NOEXCEPT;
/* "cpu", "cuda", "cuda:1" (by CUDA's count) or "auto" (the default): a GPU where there is one */
HB_API int hb_options_set_device(hb_options* options, const char* device) HB_NOEXCEPT;
/* Bytes that weights may take of a GPU's memory; the rest stays in the host's, layer by layer, and is streamed. 0, the default:
 * what is free, less a reserve for caches */
HB_API int hb_options_set_device_memory(hb_options* options, uint64_t bytes) HB_NOEXCEPT;
/* 0, the default: one thread per core that the process may use */
HB_API int hb_options_set_threads(hb_options* options, int threads) HB_NOEXCEPT;
/* "high" (the default: at least as accurate as 16-bit floats), "fast" (may use int8 activations) or "float32" (the reference) */
HB_API int hb_options_set_precision(hb_options* options, const char* precision) HB_NOEXCEPT;
/* "" (the default: the values of the file), or the format to which float weights are rounded: "nf4", "fp4", "int8", "bf16",
 * "f16" */
HB_API int hb_options_set_quantize(hb_options* options, const char* format) HB_NOEXCEPT;
/* what generations keep of the tokens read: "f16", "bf16", "f32", "int8" (one scale for each head and token), or "" (the
 * default: f16, and f32 with precision "float32") */
HB_API int hb_options_set_kv_cache(hb_options* options, const char* dtype) HB_NOEXCEPT;
/* callback may be NULL: none */
HB_API int hb_options_set_progress(hb_options* options, hb_progress_callback callback, void* user) HB_NOEXCEPT;

/* Opens a Hugging Face folder (float or bitsandbytes), a .safetensors file with config.json beside it, or a GGUF file.
 * options may be NULL: the defaults. They are not needed after the call. */
HB_API int hb_model_open(const char* path, const hb_options* options, hb_model** model) HB_NOEXCEPT;
/* No other thread may be using `model`. Generations that are still open keep what they need. */
HB_API void hb_model_close(hb_model* model) HB_NOEXCEPT;

/* "llama", and "gguf", "safetensors" or "bitsandbytes". Valid until the model is closed. */
HB_API int hb_model_architecture(const hb_model* model, const char** name) HB_NOEXCEPT;
HB_API int hb_model_format(const hb_model* model, const char** name) HB_NOEXCEPT;
HB_API int hb_model_vocab_size(const hb_model* model, size_t* size) HB_NOEXCEPT;
HB_API int hb_model_hidden_size(const hb_model* model, size_t* size) HB_NOEXCEPT;
HB_API int hb_model_layers(const hb_model* model, size_t* layers) HB_NOEXCEPT;
/* Positions that a sequence has for its tokens, generated ones included. */
HB_API int hb_model_max_positions(const hb_model* model, size_t* positions) HB_NOEXCEPT;
/* 1: a decoder, which can generate; 0: an encoder */
HB_API int hb_model_is_causal(const hb_model* model, int* causal) HB_NOEXCEPT;
/* 1: there is an output layer over the vocabulary */
HB_API int hb_model_has_logits(const hb_model* model, int* has_logits) HB_NOEXCEPT;

/* The bytes of every token id: pieces[i] holds lengths[i] of them, any bytes, none for a token that shows nothing. Needed
 * for stop texts and hb_generation_piece alone. Generations that run already keep what they began with. */
HB_API int hb_model_set_vocabulary(hb_model* model, const char* const* pieces, const size_t* lengths,
                                   size_t count) HB_NOEXCEPT;

/* --- adapters --------------------------------------------------------------------------------------------------- */

/* Reads a PEFT folder and attaches it under `name`, replacing one of that name. It acts on the calls that name it and on no
 * others: threads may use different adapters of one model at once. */
HB_API int hb_model_attach_adapter(hb_model* model, const char* folder, const char* name) HB_NOEXCEPT;
/* The same, but the folder is read when a call first names the adapter. pinned: non-zero: it is never put away for the budget. */
HB_API int hb_model_register_adapter(hb_model* model, const char* folder, const char* name, int pinned) HB_NOEXCEPT;
/* Bytes that adapters may take together; 0, the default: no limit. Beyond it those used least recently are put away, and read
 * again when a call names them. */
HB_API int hb_model_set_adapter_budget(hb_model* model, uint64_t bytes) HB_NOEXCEPT;
/* How often an adapter that a call named was in memory, and how often it had to be read. Each pointer may be NULL. */
HB_API int hb_model_adapter_stats(const hb_model* model, uint64_t* hits, uint64_t* misses, uint64_t* bytes) HB_NOEXCEPT;
/* Calls and generations in flight keep the adapter until they end. */
HB_API int hb_model_detach_adapter(hb_model* model, const char* name) HB_NOEXCEPT;

/* --- whole sequences -------------------------------------------------------------------------------------------- */

/* Sequences lie one behind the other in `tokens`, without padding: lengths[0] tokens of the first, and so on; `total` is the
 * sum of the lengths. adapter: a name, or NULL for none. Results are float32, row-major, in `out`, which the caller owns;
 * out_size is its size in floats and must be rows * columns exactly. */

/* Columns of hb_logits: the model's vocab_size, or that of an adapter whose vocabulary was resized. adapter may be NULL. */
HB_API int hb_logits_size(const hb_model* model, const char* adapter, size_t* size) HB_NOEXCEPT;
/* out: [total, hb_logits_size]; row i scores what follows token i */
HB_API int hb_logits(const hb_model* model, const int32_t* tokens, const size_t* lengths, size_t sequences,
                     const char* adapter, float* out, size_t out_size) HB_NOEXCEPT;
/* out: [total, hidden_size], after the final norm. token_types: [total], or NULL for all 0. */
HB_API int hb_hidden_states(const hb_model* model, const int32_t* tokens, const int32_t* token_types, const size_t* lengths,
                            size_t sequences, const char* adapter, float* out, size_t out_size) HB_NOEXCEPT;
/* out: [sequences, hidden_size]. pooling: "mean", "cls", "max" or "last". normalize: non-zero for rows of unit length. */
HB_API int hb_embed(const hb_model* model, const int32_t* tokens, const int32_t* token_types, const size_t* lengths,
                    size_t sequences, const char* pooling, int normalize, const char* adapter, float* out,
                    size_t out_size) HB_NOEXCEPT;

/* Labels of the classification head of the model or of the adapter. HB_NOT_FOUND where neither has one. */
HB_API int hb_labels(const hb_model* model, const char* adapter, size_t* labels) HB_NOEXCEPT;
/* Scores before any softmax. out: [sequences, hb_labels], or [total, hb_labels] where per_token is non-zero (a head over
 * tokens). token_types: [total], or NULL for all 0. */
HB_API int hb_classify(const hb_model* model, const int32_t* tokens, const int32_t* token_types, const size_t* lengths,
                       size_t sequences, int per_token, const char* adapter, float* out, size_t out_size) HB_NOEXCEPT;

/* --- generation ------------------------------------------------------------------------------------------------- */

/* Values are checked when a generation begins. Filters run in this order: repetition, presence and frequency penalties,
 * temperature, top_k, top_p, min_p. */
HB_API int hb_generate_options_create(hb_generate_options** options) HB_NOEXCEPT;
HB_API void hb_generate_options_free(hb_generate_options* options) HB_NOEXCEPT;
/* 1 and up; the default is 256 */
HB_API int hb_generate_options_set_max_tokens(hb_generate_options* options, size_t tokens) HB_NOEXCEPT;
/* 0, the default: greedy */
HB_API int hb_generate_options_set_temperature(hb_generate_options* options, float value) HB_NOEXCEPT;
/* 0, the default: off */
HB_API int hb_generate_options_set_top_k(hb_generate_options* options, size_t count) HB_NOEXCEPT;
/* above 0; 1, the default: off */
HB_API int hb_generate_options_set_top_p(hb_generate_options* options, float value) HB_NOEXCEPT;
/* below 1; 0, the default: off */
HB_API int hb_generate_options_set_min_p(hb_generate_options* options, float value) HB_NOEXCEPT;
/* above 0; 1, the default: off. Counts tokens of the prompt too. */
HB_API int hb_generate_options_set_repetition_penalty(hb_generate_options* options, float value) HB_NOEXCEPT;
/* 0, the default: off */
HB_API int hb_generate_options_set_presence_penalty(hb_generate_options* options, float value) HB_NOEXCEPT;
HB_API int hb_generate_options_set_frequency_penalty(hb_generate_options* options, float value) HB_NOEXCEPT;
/* The same seed and logits give the same tokens on every machine. The default is 0. */
HB_API int hb_generate_options_set_seed(hb_generate_options* options, uint64_t seed) HB_NOEXCEPT;
/* Ends the generation; no part of the output. */
HB_API int hb_generate_options_add_stop_token(hb_generate_options* options, int32_t token) HB_NOEXCEPT;
/* Ends the generation once its text contains this; needs hb_model_set_vocabulary. */
HB_API int hb_generate_options_add_stop_text(hb_generate_options* options, const char* text) HB_NOEXCEPT;
/* name may be NULL: none, the default. Takes the place of adapters given before. */
HB_API int hb_generate_options_set_adapter(hb_generate_options* options, const char* name) HB_NOEXCEPT;
/* One more adapter, with a weight: W x + sum of weight * scale * B (A x). LoRA alone can be added so. */
HB_API int hb_generate_options_add_adapter(hb_generate_options* options, const char* name, float weight) HB_NOEXCEPT;

/* Called with every token generated. Non-zero stops. */
typedef int (*hb_token_callback)(int32_t token, void* user);

/* Generates until finished. prompt: [prompt_size]. options may be NULL: the defaults. HB_CANCELLED where the callback asked
 * to stop. */
HB_API int hb_generate(const hb_model* model, const int32_t* prompt, size_t prompt_size, const hb_generate_options* options,
                       hb_token_callback callback, void* user) HB_NOEXCEPT;

/* The same, step by step. The generation keeps the model's weights and its adapter alive. */
HB_API int hb_generation_create(const hb_model* model, const int32_t* prompt, size_t prompt_size,
                                const hb_generate_options* options, hb_generation** generation) HB_NOEXCEPT;
HB_API void hb_generation_free(hb_generation* generation) HB_NOEXCEPT;
/* Runs a part of the prompt or one token. *worked: 0 where the generation had finished before and nothing was done, else 1.
 * After an error it may be called again. */
HB_API int hb_generation_step(hb_generation* generation, int* worked) HB_NOEXCEPT;
/* All tokens generated so far. Valid until the next step. */
HB_API int hb_generation_tokens(const hb_generation* generation, const int32_t** tokens, size_t* count) HB_NOEXCEPT;
/* Text that the last step made certain: whole characters, perhaps none. Needs hb_model_set_vocabulary. Valid until the next
 * step. */
HB_API int hb_generation_piece(const hb_generation* generation, const char** text, size_t* size) HB_NOEXCEPT;
/* "" while it runs; "stop" after a stop token or text; "length" where max_tokens or the context is used up. */
HB_API int hb_generation_finish_reason(const hb_generation* generation, const char** reason) HB_NOEXCEPT;

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* HALFBYTE_H */
