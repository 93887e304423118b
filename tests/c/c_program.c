/* A program in plain C11 that uses all of halfbyte.h: c_program FOLDER, the folder being what make_models has written. */
#include "c_program.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char* folder;
static int failures;

const char* path_of(const char* name) {
    static char text[4096];
    snprintf(text, sizeof text, "%s/%s", folder, name);
    return text;
}

void check(int good, const char* what, const char* file, int line) {
    if (good) return;
    failures++;
    fprintf(stderr, "%s:%d: %s (last error: %s)\n", file, line, what, hb_last_error());
}

void check_error(int found, int expected, const char* part, const char* what, const char* file, int line) {
    if (found == expected && (expected == HB_OK || strstr(hb_last_error(), part) != NULL)) return;
    failures++;
    fprintf(stderr, "%s:%d: %s is %s, expected %s with \"%s\"; last error: %s\n", file, line, what, hb_status_name(found),
            hb_status_name(expected), part, hb_last_error());
}

static int count_progress(double done, void* user) {
    double* last = user;
    CHECK(done >= *last && done <= 1.0);
    *last = done;
    return 0;
}

/* float32 precision: products of the cached and of the whole sequence differ by rounding alone. */
static hb_model* open_model(const char* name) {
    hb_options* options = NULL;
    hb_model* model = NULL;
    double progress = 0;
    OK(hb_options_create(&options));
    OK(hb_options_set_device(options, "cpu"));
    OK(hb_options_set_threads(options, 2));
    OK(hb_options_set_precision(options, "float32"));
    OK(hb_options_set_quantize(options, ""));
    OK(hb_options_set_device_memory(options, 0));
    OK(hb_options_set_kv_cache(options, "bf16"));
    OK(hb_options_set_kv_cache(options, ""));
    OK(hb_options_set_progress(options, count_progress, &progress));
    OK(hb_model_open(path_of(name), options, &model));
    hb_options_free(options);
    CHECK(model != NULL);
    if (model == NULL) exit(1);
    CHECK(progress == 1.0);
    return model;
}

static void test_getters(const hb_model* model) {
    const char* text = NULL;
    size_t size = 0;
    int flag = -1;
    OK(hb_model_architecture(model, &text));
    CHECK(strcmp(text, "llama") == 0);
    OK(hb_model_format(model, &text));
    CHECK(strcmp(text, "safetensors") == 0);
    OK(hb_model_vocab_size(model, &size));
    CHECK(size == VOCAB);
    OK(hb_model_hidden_size(model, &size));
    CHECK(size == HIDDEN);
    OK(hb_model_layers(model, &size));
    CHECK(size == 2);
    OK(hb_model_max_positions(model, &size));
    CHECK(size == POSITIONS);
    OK(hb_model_is_causal(model, &flag));
    CHECK(flag == 1);
    OK(hb_model_has_logits(model, &flag));
    CHECK(flag == 1);
}

struct collected {
    int32_t tokens[64];
    size_t count, stop_after;
};

static int collect(int32_t token, void* user) {
    struct collected* all = user;
    all->tokens[all->count++] = token;
    return all->count == all->stop_after;
}

static hb_generate_options* options_of(size_t max_tokens) {
    hb_generate_options* options = NULL;
    OK(hb_generate_options_create(&options));
    OK(hb_generate_options_set_max_tokens(options, max_tokens));
    return options;
}

/* Greedy tokens are the greatest logits of the whole sequence run at once. */
static void check_greedy(const hb_model* model, const int32_t* prompt, size_t size, const struct collected* out,
                         const char* adapter) {
    const size_t total = size + out->count;
    int32_t* all = malloc(total * sizeof *all);
    float* logits = malloc(total * VOCAB * sizeof *logits);
    memcpy(all, prompt, size * sizeof *all);
    memcpy(all + size, out->tokens, out->count * sizeof *all);
    OK(hb_logits(model, all, &total, 1, adapter, logits, total * VOCAB));
    for (size_t i = 0; i < out->count; i++) {
        const float* row = logits + (size - 1 + i) * VOCAB;
        int32_t best = 0;
        for (int32_t t = 1; t < VOCAB; t++)
            if (row[t] > row[best]) best = t;
        CHECK(best == out->tokens[i]);
    }
    free(all);
    free(logits);
}

static void test_generation(const hb_model* model) {
    const int32_t prompt[] = {1, 5, 9, 96, 0};
    struct collected out = {.count = 0}, again = {.count = 0}, stopped = {.count = 0, .stop_after = 3};
    hb_generate_options* options = options_of(20);
    OK(hb_generate(model, prompt, 5, options, collect, &out));
    CHECK(out.count == 20);
    check_greedy(model, prompt, 5, &out, NULL);

    FAILS(hb_generate(model, prompt, 5, options, collect, &stopped), HB_CANCELLED, "after 3 tokens");
    CHECK(stopped.count == 3 && memcmp(stopped.tokens, out.tokens, 3 * sizeof(int32_t)) == 0);

    OK(hb_generate_options_add_stop_token(options, out.tokens[7]));
    OK(hb_generate(model, prompt, 5, options, collect, &again));
    CHECK(again.count <= 7 && memcmp(again.tokens, out.tokens, again.count * sizeof(int32_t)) == 0);
    CHECK(out.tokens[again.count] == out.tokens[7]);
    hb_generate_options_free(options);

    /* Sampled: the seed decides. */
    struct collected sampled[3] = {{.count = 0}, {.count = 0}, {.count = 0}};
    for (int i = 0; i < 3; i++) {
        options = options_of(30);
        OK(hb_generate_options_set_temperature(options, 1.0f));
        OK(hb_generate_options_set_top_k(options, 50));
        OK(hb_generate_options_set_top_p(options, 0.99f));
        OK(hb_generate_options_set_min_p(options, 0.001f));
        OK(hb_generate_options_set_repetition_penalty(options, 1.1f));
        OK(hb_generate_options_set_presence_penalty(options, 0.1f));
        OK(hb_generate_options_set_frequency_penalty(options, 0.1f));
        OK(hb_generate_options_set_seed(options, i == 2 ? 8 : 7));
        OK(hb_generate(model, prompt, 5, options, collect, &sampled[i]));
        hb_generate_options_free(options);
    }
    CHECK(memcmp(&sampled[0], &sampled[1], sizeof sampled[0]) == 0);
    CHECK(memcmp(&sampled[0], &sampled[2], sizeof sampled[0]) != 0);
}

/* A prompt of several chunks, up to the end of the context; the cache grows on the way. */
static void test_long_prompt(const hb_model* model) {
    enum { LONG = 540 };
    int32_t prompt[LONG];
    for (int i = 0; i < LONG; i++) prompt[i] = (i * 31 + 7) % VOCAB;
    hb_generate_options* options = options_of(1000);
    hb_generation* generation = NULL;
    OK(hb_generation_create(model, prompt, LONG, options, &generation));
    hb_generate_options_free(options);
    int worked = 1;
    size_t steps = 0, count = 0;
    const int32_t* tokens = NULL;
    while (worked) {
        OK(hb_generation_step(generation, &worked));
        steps += (size_t)worked;
    }
    OK(hb_generation_tokens(generation, &tokens, &count));
    const char* reason = NULL;
    OK(hb_generation_finish_reason(generation, &reason));
    CHECK(strcmp(reason, "length") == 0);
    CHECK(count == POSITIONS - LONG + 1); /* the last one needs no position of its own */
    CHECK(steps == count + 2);            /* the prompt took three steps, the last of which gave a token */
    struct collected out = {.count = 0};
    out.count = count - 1;
    memcpy(out.tokens, tokens, out.count * sizeof(int32_t));
    check_greedy(model, prompt, LONG, &out, NULL);
    hb_generation_free(generation);

    /* A short prompt whose cache doubles: 40 + 256 tokens to begin with. */
    struct collected many = {.count = 0};
    options = options_of(500);
    OK(hb_generation_create(model, prompt, 40, options, &generation));
    hb_generate_options_free(options);
    for (worked = 1; worked;) OK(hb_generation_step(generation, &worked));
    OK(hb_generation_tokens(generation, &tokens, &count));
    CHECK(count == 500);
    int32_t grown[540];
    memcpy(grown, prompt, 40 * sizeof(int32_t));
    memcpy(grown + 40, tokens, 500 * sizeof(int32_t));
    many.count = 50;
    memcpy(many.tokens, tokens + 450, 50 * sizeof(int32_t));
    check_greedy(model, grown, 490, &many, NULL);
    hb_generation_free(generation);
}

static void test_text(hb_model* model) {
    /* Token t shows the letter 'a' + t % 26, but for token 0, which shows nothing. */
    char letters[VOCAB];
    const char* pieces[VOCAB];
    size_t lengths[VOCAB];
    for (int t = 0; t < VOCAB; t++) letters[t] = (char)('a' + t % 26), pieces[t] = &letters[t], lengths[t] = t > 0;
    const int32_t prompt[] = {3, 4};
    hb_generate_options* options = options_of(24);
    hb_generation* generation = NULL;
    OK(hb_generate_options_add_stop_text(options, "x"));
    FAILS(hb_generation_create(model, prompt, 2, options, &generation), HB_INVALID_ARGUMENT, "vocabulary");
    CHECK(generation == NULL);
    hb_generate_options_free(options);
    OK(hb_model_set_vocabulary(model, pieces, lengths, VOCAB));

    char whole[64] = "";
    size_t size = 0;
    const char* text = NULL;
    const char* reason = NULL;
    int worked = 1;
    for (int pass = 0; pass < 2; pass++) {
        options = options_of(24);
        char stop[3] = "";
        if (pass == 1) {
            memcpy(stop, whole + 5, 2);
            OK(hb_generate_options_add_stop_text(options, stop));
        }
        OK(hb_generation_create(model, prompt, 2, options, &generation));
        hb_generate_options_free(options);
        char shown[64] = "";
        for (worked = 1; worked;) {
            OK(hb_generation_step(generation, &worked));
            OK(hb_generation_piece(generation, &text, &size));
            CHECK(worked || size == 0);
            strncat(shown, text, size);
        }
        OK(hb_generation_finish_reason(generation, &reason));
        if (pass == 0) {
            CHECK(strcmp(reason, "length") == 0);
            CHECK(strlen(shown) >= 12);
            strcpy(whole, shown);
        } else {
            char* first = strstr(whole, stop);
            CHECK(strcmp(reason, "stop") == 0);
            CHECK(strlen(shown) == (size_t)(first - whole) && strncmp(shown, whole, strlen(shown)) == 0);
        }
        hb_generation_free(generation);
    }
}

static void test_adapter(hb_model* model) {
    const int32_t prompt[] = {1, 5, 9};
    const size_t three = 3;
    static float plain[3 * VOCAB], adapted[3 * VOCAB], after[3 * VOCAB];
    OK(hb_logits(model, prompt, &three, 1, NULL, plain, 3 * VOCAB));
    OK(hb_model_attach_adapter(model, path_of("adapter"), "tuned"));
    OK(hb_logits(model, prompt, &three, 1, "tuned", adapted, 3 * VOCAB));
    OK(hb_logits(model, prompt, &three, 1, NULL, after, 3 * VOCAB));
    CHECK(memcmp(plain, after, sizeof plain) == 0);
    float most = 0;
    for (int i = 0; i < 3 * VOCAB; i++) most = fmaxf(most, fabsf(plain[i] - adapted[i]));
    CHECK(most > 0.1f);

    hb_generate_options* options = options_of(12);
    struct collected out = {.count = 0};
    OK(hb_generate_options_set_adapter(options, "tuned"));
    hb_generation* generation = NULL;
    OK(hb_generation_create(model, prompt, 3, options, &generation));
    OK(hb_generate(model, prompt, 3, options, collect, &out));
    check_greedy(model, prompt, 3, &out, "tuned");

    /* A sum of one adapter with weight 1 is that adapter; with weight 0, nobody. */
    size_t columns = 0;
    OK(hb_logits_size(model, "tuned", &columns));
    CHECK(columns == VOCAB);
    struct collected again = {.count = 0};
    OK(hb_generate_options_set_adapter(options, NULL));
    OK(hb_generate_options_add_adapter(options, "tuned", 1));
    OK(hb_generate(model, prompt, 3, options, collect, &again));
    CHECK(again.count == out.count && memcmp(again.tokens, out.tokens, out.count * sizeof(int32_t)) == 0);
    OK(hb_generate_options_set_adapter(options, NULL));
    OK(hb_generate_options_add_adapter(options, "tuned", 0));
    again.count = 0;
    OK(hb_generate(model, prompt, 3, options, collect, &again));
    check_greedy(model, prompt, 3, &again, NULL);
    OK(hb_generate_options_add_adapter(options, "tuned", 1));
    FAILS(hb_generate(model, prompt, 3, options, collect, &again), HB_INVALID_ARGUMENT, "named twice");
    OK(hb_generate_options_set_adapter(options, "tuned"));
    size_t labels = 0;
    FAILS(hb_labels(model, "tuned", &labels), HB_NOT_FOUND, "no classification head");
    FAILS(hb_classify(model, prompt, NULL, &three, 1, 0, "tuned", adapted, 2), HB_NOT_FOUND, "no classification head");

    /* Read when it is first named, put away and read again. */
    uint64_t hits = 0, misses = 0, hits_before = 0, bytes = 0;
    OK(hb_model_adapter_stats(model, &hits_before, NULL, NULL));
    OK(hb_model_register_adapter(model, path_of("adapter"), "lazy", 0));
    OK(hb_logits(model, prompt, &three, 1, "lazy", after, 3 * VOCAB));
    CHECK(memcmp(adapted, after, sizeof after) == 0);
    OK(hb_model_set_adapter_budget(model, 1));
    OK(hb_logits(model, prompt, &three, 1, "tuned", after, 3 * VOCAB));
    OK(hb_logits(model, prompt, &three, 1, "lazy", after, 3 * VOCAB));
    CHECK(memcmp(adapted, after, sizeof after) == 0);
    OK(hb_model_adapter_stats(model, &hits, &misses, &bytes));
    CHECK(misses == 3 && hits == hits_before && bytes > 0);
    OK(hb_model_set_adapter_budget(model, 0));
    OK(hb_model_detach_adapter(model, "lazy"));

    FAILS(hb_model_attach_adapter(model, path_of("wrong-adapter"), "tuned"), HB_CORRUPT, "another model");
    FAILS(hb_model_attach_adapter(model, path_of("nowhere"), "x"), HB_NOT_FOUND, "nowhere");
    FAILS(hb_model_attach_adapter(model, path_of("adapter"), ""), HB_INVALID_ARGUMENT, "name is empty");
    OK(hb_model_detach_adapter(model, "tuned"));
    FAILS(hb_model_detach_adapter(model, "tuned"), HB_NOT_FOUND, "no adapter \"tuned\"");
    FAILS(hb_logits(model, prompt, &three, 1, "tuned", adapted, 3 * VOCAB), HB_NOT_FOUND, "loaded: none");
    FAILS(hb_generate(model, prompt, 3, options, collect, &out), HB_NOT_FOUND, "no adapter \"tuned\"");
    hb_generate_options_free(options);

    /* The generation that was made before keeps it. */
    const int32_t* tokens = NULL;
    size_t count = 0;
    for (int worked = 1; worked;) OK(hb_generation_step(generation, &worked));
    OK(hb_generation_tokens(generation, &tokens, &count));
    CHECK(count == out.count && memcmp(tokens, out.tokens, count * sizeof(int32_t)) == 0);
    hb_generation_free(generation);
}

static void test_encoder(hb_model* encoder) {
    const int32_t tokens[] = {2, 3, 4, 5, 6, 60, 0};
    const int32_t types[] = {0, 0, 1, 1, 0, 1, 1};
    const size_t lengths[] = {4, 3};
    static float hidden[7 * ENCODER_HIDDEN], plain[7 * ENCODER_HIDDEN], mean[2 * ENCODER_HIDDEN], unit[2 * ENCODER_HIDDEN];
    OK(hb_hidden_states(encoder, tokens, types, lengths, 2, NULL, hidden, 7 * ENCODER_HIDDEN));
    OK(hb_hidden_states(encoder, tokens, NULL, lengths, 2, NULL, plain, 7 * ENCODER_HIDDEN));
    CHECK(memcmp(hidden, plain, sizeof hidden) != 0);
    OK(hb_embed(encoder, tokens, types, lengths, 2, "mean", 0, NULL, mean, 2 * ENCODER_HIDDEN));
    OK(hb_embed(encoder, tokens, types, lengths, 2, "mean", 1, NULL, unit, 2 * ENCODER_HIDDEN));
    size_t row = 0;
    for (size_t s = 0; s < 2; s++) {
        double norm = 0;
        for (size_t i = 0; i < ENCODER_HIDDEN; i++)
            norm += (double)mean[s * ENCODER_HIDDEN + i] * mean[s * ENCODER_HIDDEN + i];
        for (size_t i = 0; i < ENCODER_HIDDEN; i++) {
            double sum = 0;
            for (size_t t = 0; t < lengths[s]; t++) sum += hidden[(row + t) * ENCODER_HIDDEN + i];
            /* Sums of at most four float32 numbers below 4, and a division by a norm near 5. */
            CHECK(fabs(sum / (double)lengths[s] - mean[s * ENCODER_HIDDEN + i]) < 2e-6);
            CHECK(fabs(mean[s * ENCODER_HIDDEN + i] / sqrt(norm) - unit[s * ENCODER_HIDDEN + i]) < 5e-7);
        }
        row += lengths[s];
    }
    OK(hb_embed(encoder, tokens, types, lengths, 2, "cls", 0, NULL, mean, 2 * ENCODER_HIDDEN));
    CHECK(memcmp(mean, hidden, ENCODER_HIDDEN * sizeof(float)) == 0);
    CHECK(memcmp(mean + ENCODER_HIDDEN, hidden + 4 * ENCODER_HIDDEN, ENCODER_HIDDEN * sizeof(float)) == 0);
    OK(hb_embed(encoder, NULL, NULL, NULL, 0, "mean", 1, NULL, NULL, 0)); /* nothing in, nothing out */
}

static void test_generation_outlives_its_model(void) {
    const int32_t prompt[] = {1, 5, 9, 96, 0};
    hb_model* model = open_model("llama");
    hb_generation* generation = NULL;
    OK(hb_generation_create(model, prompt, 5, NULL, &generation));
    hb_model_close(model);
    int worked = 0;
    for (int i = 0; i < 5; i++) OK(hb_generation_step(generation, &worked));
    CHECK(worked == 1);
    hb_generation_free(generation); /* abandoned */
}

int main(int argc, char** argv) {
    if (argc != 2) return fprintf(stderr, "usage: c_program FOLDER\n"), 2;
    folder = argv[1];
    CHECK(strlen(hb_version()) >= 5);
    CHECK(strcmp(hb_last_error(), "") == 0);
    CHECK(strcmp(hb_status_name(HB_IO), "HB_IO") == 0 && strcmp(hb_status_name(99), "unknown") == 0);

    hb_model* model = open_model("llama");
    test_getters(model);
    test_generation(model);
    test_long_prompt(model);
    test_text(model);
    test_adapter(model);
    test_null_pointers(model);
    test_call_errors(model);
    test_generation_errors(model);
    hb_model_close(model);

    hb_model* encoder = open_model("bert");
    test_encoder(encoder);
    test_encoder_errors(encoder);
    hb_model_close(encoder);

    test_opening_errors();
    test_generation_outlives_its_model();
    printf("%d failed checks\n", failures);
    return failures == 0 ? 0 : 1;
}
