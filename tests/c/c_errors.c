/* Every way to call halfbyte.h wrongly: a status and a text, never a crash. */
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "c_program.h"

#define NULL_POINTER(call, name) FAILS(call, HB_INVALID_ARGUMENT, name " is a null pointer")

static int ignore_token(int32_t token, void* user) {
    (void)token;
    (void)user;
    return 0;
}

static int stop_loading(double done, void* user) {
    (void)done;
    (void)user;
    return 1;
}

void test_null_pointers(hb_model* model) {
    const int32_t token = 1;
    const size_t one = 1;
    float out[VOCAB];
    size_t size = 0;
    int flag = 0;
    const char* text = NULL;
    const int32_t* tokens = NULL;
    hb_model* none = NULL;
    hb_generation* generation = NULL;

    NULL_POINTER(hb_options_create(NULL), "options");
    NULL_POINTER(hb_options_set_device(NULL, "cpu"), "options");
    NULL_POINTER(hb_options_set_threads(NULL, 1), "options");
    NULL_POINTER(hb_options_set_precision(NULL, "high"), "options");
    NULL_POINTER(hb_options_set_quantize(NULL, "nf4"), "options");
    NULL_POINTER(hb_options_set_device_memory(NULL, 0), "options");
    NULL_POINTER(hb_options_set_kv_cache(NULL, "f16"), "options");
    NULL_POINTER(hb_options_set_progress(NULL, NULL, NULL), "options");
    NULL_POINTER(hb_model_open(NULL, NULL, &none), "path");
    NULL_POINTER(hb_model_open("x", NULL, NULL), "model");
    NULL_POINTER(hb_model_architecture(NULL, &text), "model");
    NULL_POINTER(hb_model_architecture(model, NULL), "result");
    NULL_POINTER(hb_model_format(NULL, &text), "model");
    NULL_POINTER(hb_model_vocab_size(NULL, &size), "model");
    NULL_POINTER(hb_model_vocab_size(model, NULL), "result");
    NULL_POINTER(hb_model_hidden_size(NULL, &size), "model");
    NULL_POINTER(hb_model_layers(NULL, &size), "model");
    NULL_POINTER(hb_model_max_positions(NULL, &size), "model");
    NULL_POINTER(hb_model_is_causal(NULL, &flag), "model");
    NULL_POINTER(hb_model_has_logits(NULL, &flag), "model");
    NULL_POINTER(hb_model_set_vocabulary(NULL, &text, &one, 1), "model");
    NULL_POINTER(hb_model_set_vocabulary(model, NULL, &one, 1), "pieces");
    NULL_POINTER(hb_model_set_vocabulary(model, &text, NULL, 1), "lengths");
    NULL_POINTER(hb_model_set_vocabulary(model, &text, &one, 1), "pieces[0]");
    NULL_POINTER(hb_model_attach_adapter(NULL, "x", "x"), "model");
    NULL_POINTER(hb_model_attach_adapter(model, NULL, "x"), "folder");
    NULL_POINTER(hb_model_attach_adapter(model, "x", NULL), "name");
    NULL_POINTER(hb_model_register_adapter(NULL, "x", "x", 0), "model");
    NULL_POINTER(hb_model_register_adapter(model, NULL, "x", 0), "folder");
    NULL_POINTER(hb_model_set_adapter_budget(NULL, 0), "model");
    NULL_POINTER(hb_model_adapter_stats(NULL, NULL, NULL, NULL), "model");
    NULL_POINTER(hb_logits_size(model, NULL, NULL), "the pointer to the result");
    NULL_POINTER(hb_labels(NULL, NULL, NULL), "model");
    NULL_POINTER(hb_classify(NULL, NULL, NULL, NULL, 0, 0, NULL, NULL, 0), "model");
    NULL_POINTER(hb_generate_options_add_adapter(NULL, "x", 1), "options");
    NULL_POINTER(hb_model_detach_adapter(NULL, "x"), "model");
    NULL_POINTER(hb_model_detach_adapter(model, NULL), "name");
    NULL_POINTER(hb_logits(NULL, &token, &one, 1, NULL, out, VOCAB), "model");
    NULL_POINTER(hb_logits(model, NULL, &one, 1, NULL, out, VOCAB), "tokens");
    NULL_POINTER(hb_logits(model, &token, NULL, 1, NULL, out, VOCAB), "lengths");
    NULL_POINTER(hb_logits(model, &token, &one, 1, NULL, NULL, VOCAB), "out");
    NULL_POINTER(hb_hidden_states(NULL, &token, NULL, &one, 1, NULL, out, HIDDEN), "model");
    NULL_POINTER(hb_hidden_states(model, &token, NULL, &one, 1, NULL, NULL, HIDDEN), "out");
    NULL_POINTER(hb_embed(NULL, &token, NULL, &one, 1, "mean", 0, NULL, out, HIDDEN), "model");
    NULL_POINTER(hb_embed(model, &token, NULL, &one, 1, NULL, 0, NULL, out, HIDDEN), "pooling");
    NULL_POINTER(hb_generate_options_create(NULL), "options");
    NULL_POINTER(hb_generate_options_set_max_tokens(NULL, 1), "options");
    NULL_POINTER(hb_generate_options_set_temperature(NULL, 1), "options");
    NULL_POINTER(hb_generate_options_set_top_k(NULL, 1), "options");
    NULL_POINTER(hb_generate_options_set_top_p(NULL, 1), "options");
    NULL_POINTER(hb_generate_options_set_min_p(NULL, 0), "options");
    NULL_POINTER(hb_generate_options_set_repetition_penalty(NULL, 1), "options");
    NULL_POINTER(hb_generate_options_set_presence_penalty(NULL, 0), "options");
    NULL_POINTER(hb_generate_options_set_frequency_penalty(NULL, 0), "options");
    NULL_POINTER(hb_generate_options_set_seed(NULL, 0), "options");
    NULL_POINTER(hb_generate_options_add_stop_token(NULL, 0), "options");
    NULL_POINTER(hb_generate_options_add_stop_text(NULL, "x"), "options");
    NULL_POINTER(hb_generate_options_set_adapter(NULL, "x"), "options");
    NULL_POINTER(hb_generate(NULL, &token, 1, NULL, ignore_token, NULL), "model");
    NULL_POINTER(hb_generate(model, NULL, 1, NULL, ignore_token, NULL), "prompt");
    NULL_POINTER(hb_generate(model, &token, 1, NULL, NULL, NULL), "callback");
    NULL_POINTER(hb_generation_create(NULL, &token, 1, NULL, &generation), "model");
    NULL_POINTER(hb_generation_create(model, NULL, 1, NULL, &generation), "prompt");
    NULL_POINTER(hb_generation_create(model, &token, 1, NULL, NULL), "generation");
    NULL_POINTER(hb_generation_step(NULL, &flag), "generation");
    NULL_POINTER(hb_generation_tokens(NULL, &tokens, &size), "generation");
    NULL_POINTER(hb_generation_piece(NULL, &text, &size), "generation");
    NULL_POINTER(hb_generation_finish_reason(NULL, &text), "generation");
    OK(hb_generation_create(model, &token, 1, NULL, &generation));
    NULL_POINTER(hb_generation_step(generation, NULL), "worked");
    NULL_POINTER(hb_generation_tokens(generation, NULL, &size), "tokens");
    NULL_POINTER(hb_generation_tokens(generation, &tokens, NULL), "count");
    NULL_POINTER(hb_generation_piece(generation, NULL, &size), "text");
    NULL_POINTER(hb_generation_piece(generation, &text, NULL), "size");
    NULL_POINTER(hb_generation_finish_reason(generation, NULL), "reason");
    hb_generation_free(generation);

    hb_options* options = NULL;
    OK(hb_options_create(&options));
    NULL_POINTER(hb_options_set_device(options, NULL), "device");
    NULL_POINTER(hb_options_set_precision(options, NULL), "precision");
    NULL_POINTER(hb_options_set_quantize(options, NULL), "format");
    NULL_POINTER(hb_options_set_kv_cache(options, NULL), "dtype");
    hb_options_free(options);

    hb_options_free(NULL);
    hb_model_close(NULL);
    hb_generate_options_free(NULL);
    hb_generation_free(NULL);
}

static void check_open(const char* device, int threads, const char* quantize, int status, const char* part) {
    hb_options* options = NULL;
    hb_model* model = NULL;
    OK(hb_options_create(&options));
    OK(hb_options_set_device(options, device));
    OK(hb_options_set_threads(options, threads));
    OK(hb_options_set_quantize(options, quantize));
    FAILS(hb_model_open(path_of("llama"), options, &model), status, part);
    CHECK(model == NULL);
    hb_options_free(options);
}

void test_opening_errors(void) {
    hb_model* model = NULL;
    FAILS(hb_model_open(path_of("missing.gguf"), NULL, &model), HB_NOT_FOUND, "missing.gguf");
    FAILS(hb_model_open("", NULL, &model), HB_NOT_FOUND, "hb_model_open");
    FAILS(hb_model_open(path_of("."), NULL, &model), HB_NOT_FOUND, "neither model.safetensors");
    FAILS(hb_model_open(path_of("adapter"), NULL, &model), HB_UNSUPPORTED, "a PEFT adapter, not a model");
    CHECK(model == NULL);
    check_open("cuda", 1, "", HB_NOT_FOUND, "cuda");
    check_open("abacus", 1, "", HB_INVALID_ARGUMENT, "abacus");
    check_open("cpu", -1, "", HB_INVALID_ARGUMENT, "found -1");
    check_open("cpu", INT_MAX, "", HB_INVALID_ARGUMENT, "threads");
    check_open("cpu", 1, "nf9", HB_INVALID_ARGUMENT, "nf9");

    hb_options* options = NULL;
    OK(hb_options_create(&options));
    FAILS(hb_options_set_precision(options, "low"), HB_INVALID_ARGUMENT, "\"high\", \"fast\" or \"float32\"");
    OK(hb_options_set_progress(options, stop_loading, NULL));
    FAILS(hb_model_open(path_of("llama"), options, &model), HB_CANCELLED, "progress callback");
    CHECK(model == NULL);
    OK(hb_options_set_progress(options, NULL, NULL));
    OK(hb_model_open(path_of("llama"), options, &model));
    hb_model_close(model);
    hb_options_free(options);
}

void test_call_errors(hb_model* model) {
    static float out[4 * VOCAB];
    const int32_t good[] = {1, 2, 3, 4}, negative[] = {1, -1}, large[] = {VOCAB, 1};
    const size_t two = 2, four = 4, split[] = {3, 1};
    FAILS(hb_logits(model, negative, &two, 1, NULL, out, 2 * VOCAB), HB_INVALID_ARGUMENT, "token 1 of sequence 0");
    FAILS(hb_logits(model, large, &two, 1, NULL, out, 2 * VOCAB), HB_INVALID_ARGUMENT, "from 0 to 96");
    FAILS(hb_logits(model, good, &four, 1, NULL, out, 3 * VOCAB), HB_INVALID_ARGUMENT, "4 * 97 = 388 floats, found 291");
    FAILS(hb_hidden_states(model, good, NULL, &four, 1, NULL, out, 4 * VOCAB), HB_INVALID_ARGUMENT, "4 * 48");
    FAILS(hb_hidden_states(model, good, good, &four, 1, NULL, out, 4 * HIDDEN), HB_INVALID_ARGUMENT, "token type");
    FAILS(hb_embed(model, good, NULL, split, 2, "median", 0, NULL, out, 2 * HIDDEN), HB_INVALID_ARGUMENT, "median");
    FAILS(hb_embed(model, good, NULL, split, 2, "last", 0, "no", out, 2 * HIDDEN), HB_NOT_FOUND, "no adapter \"no\"");
    OK(hb_embed(model, good, NULL, split, 2, "last", 0, NULL, out, 2 * HIDDEN));
    const size_t empty[] = {4, 0};
    FAILS(hb_embed(model, good, NULL, empty, 2, "last", 0, NULL, out, 2 * HIDDEN), HB_INVALID_ARGUMENT,
          "sequence 1 is empty");
    const size_t huge[] = {SIZE_MAX, 2}, large_sum[] = {SIZE_MAX / 8, SIZE_MAX / 8};
    FAILS(hb_logits(model, good, huge, 2, NULL, out, 1), HB_INVALID_ARGUMENT, "too large");
    FAILS(hb_logits(model, good, large_sum, 2, NULL, out, 1), HB_INVALID_ARGUMENT, "too large");
    static int32_t many[POSITIONS + 1];
    static float rows[(POSITIONS + 1) * HIDDEN];
    const size_t length = POSITIONS + 1;
    FAILS(hb_hidden_states(model, many, NULL, &length, 1, NULL, rows, length * HIDDEN), HB_INVALID_ARGUMENT,
          "601 tokens, more than the 600 positions");
    OK(hb_logits(model, NULL, NULL, 0, NULL, NULL, 0));
}

void test_generation_errors(hb_model* model) {
    static const int32_t many[POSITIONS + 1];
    const int32_t good = 1, large = VOCAB, negative = -1;
    FAILS(hb_generate(model, NULL, 0, NULL, ignore_token, NULL), HB_INVALID_ARGUMENT, "the prompt is empty");
    FAILS(hb_generate(model, &large, 1, NULL, ignore_token, NULL), HB_INVALID_ARGUMENT, "from 0 to 96");
    FAILS(hb_generate(model, &negative, 1, NULL, ignore_token, NULL), HB_INVALID_ARGUMENT, "found -1");
    FAILS(hb_generate(model, many, POSITIONS + 1, NULL, ignore_token, NULL), HB_INVALID_ARGUMENT,
          "601 tokens, more than the 600");

    const char* names[] = {"max_tokens", "temperature", "top_p", "min_p", "repetition_penalty", "top_k"};
    for (int i = 0; i < 6; i++) {
        hb_generate_options* options = NULL;
        OK(hb_generate_options_create(&options));
        if (i == 0) OK(hb_generate_options_set_max_tokens(options, 0));
        if (i == 1) OK(hb_generate_options_set_temperature(options, -1));
        if (i == 2) OK(hb_generate_options_set_top_p(options, 0));
        if (i == 3) OK(hb_generate_options_set_min_p(options, 1));
        if (i == 4) OK(hb_generate_options_set_repetition_penalty(options, 0));
        if (i == 5)
            FAILS(hb_generate_options_set_top_k(options, SIZE_MAX), HB_INVALID_ARGUMENT, names[i]);
        else
            FAILS(hb_generate(model, &good, 1, options, ignore_token, NULL), HB_INVALID_ARGUMENT, names[i]);
        hb_generate_options_free(options);
    }
    hb_generate_options* options = NULL;
    OK(hb_generate_options_create(&options));
    FAILS(hb_generate_options_add_stop_text(options, NULL), HB_INVALID_ARGUMENT, "text is a null pointer");
    OK(hb_generate_options_add_stop_text(options, ""));
    FAILS(hb_generate(model, &good, 1, options, ignore_token, NULL), HB_INVALID_ARGUMENT, "stop string 0 is empty");
    hb_generate_options_free(options);
}

void test_encoder_errors(hb_model* encoder) {
    static float out[32 * ENCODER_HIDDEN];
    static const int32_t tokens[25], types[] = {0, 2};
    const size_t one = 1, two = 2, long_one = 25;
    FAILS(hb_generate(encoder, tokens, 1, NULL, ignore_token, NULL), HB_UNSUPPORTED, "encoder");
    FAILS(hb_logits(encoder, tokens, &one, 1, NULL, out, 61), HB_INVALID_ARGUMENT, "no output layer");
    FAILS(hb_hidden_states(encoder, tokens, types, &two, 1, NULL, out, 2 * ENCODER_HIDDEN), HB_INVALID_ARGUMENT,
          "token type from 0 to 1, found 2");
    FAILS(hb_hidden_states(encoder, tokens, NULL, &long_one, 1, NULL, out, 25 * ENCODER_HIDDEN), HB_INVALID_ARGUMENT,
          "25 tokens, more than the 24 positions");
    FAILS(hb_model_attach_adapter(encoder, path_of("adapter"), "llama"), HB_UNSUPPORTED, "not a module of this bert");
}
