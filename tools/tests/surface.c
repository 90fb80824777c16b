/* Every function of yuan.h once, from C, well used and ill used: surface MODEL FILE. The tests run it under valgrind. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <yuan.h>

#define CHECK(what) \
    do { \
        if (!(what)) { \
            fprintf(stderr, "line %d: %s: %s\n", __LINE__, #what, yuan_last_error()); \
            exit(1); \
        } \
    } while (0)
#define OK(call) CHECK((call) == YUAN_OK)
#define FAILS(call, status) CHECK((call) == (status) && yuan_last_error()[0] != '\0')

enum { ROOM = 64 };

static int32_t count_tokens(uint32_t token, const char *text, size_t length, void *user_data) {
    (void)token;
    CHECK(strlen(text) <= length);
    return ++*(int *)user_data == 2;
}

static int32_t count_progress(uint64_t done, uint64_t total, void *user_data) {
    CHECK(done <= total);
    ++*(int *)user_data;
    return 0;
}

static int32_t stop_at_once(uint64_t done, uint64_t total, void *user_data) {
    count_progress(done, total, user_data);
    return 1;
}

static int32_t count_scores(uint32_t token, float logprob, const uint32_t *best, const float *best_logprobs, size_t count,
                            void *told) {
    (void)token;
    CHECK(count == 2 && best[0] != best[1] && best_logprobs[0] >= logprob);
    ++*(int *)told;
    return 0;
}

static int32_t cancel_it(uint64_t done, uint64_t total, void *session) {
    CHECK(done <= total);
    OK(yuan_session_cancel(session));
    return 0;
}

static void count_lines(int32_t level, const char *message, void *user_data) {
    CHECK(level >= 1 && level <= 5 && message != NULL);
    ++*(int *)user_data;
}

static void engines(const char *model, yuan_engine **engine) {
    yuan_engine_options *options;
    size_t vocab, hidden, needed;
    int heard = 0;
    char *json;

    OK(yuan_engine_options_new(&options));
    OK(yuan_engine_options_set_threads(options, 2));
    OK(yuan_engine_options_set_threads_batch(options, 1));
    OK(yuan_engine_options_set_batch_tokens(options, 64));
    OK(yuan_engine_options_set_rope(options, "f32"));
    FAILS(yuan_engine_options_set_rope(options, "f31"), YUAN_ERROR_ARGUMENT);
    OK(yuan_engine_options_set_float(options, 0));
    OK(yuan_engine_options_set_memory(options, "4G"));
    FAILS(yuan_engine_options_set_memory(options, "4X"), YUAN_ERROR_ARGUMENT);
    OK(yuan_engine_options_set_gpu(options, "off"));
    FAILS(yuan_engine_options_set_gpu(options, "-1"), YUAN_ERROR_ARGUMENT);
    OK(yuan_engine_options_set_gpu_memory(options, "6G"));
    OK(yuan_engine_options_set_gpu_memory(options, NULL));
    OK(yuan_engine_options_set_paging(options, "streamed"));
    OK(yuan_engine_options_set_direct_io(options, "off"));
    OK(yuan_engine_options_set_look_ahead(options, 1));
    OK(yuan_engine_options_set_sessions(options, 16 * ROOM, "q8_0"));
    FAILS(yuan_engine_open("no.gguf", options, engine), YUAN_ERROR_FILE);
    OK(yuan_engine_options_set_progress(options, stop_at_once, &heard));
    FAILS(yuan_engine_open(model, options, engine), YUAN_ERROR_CANCELLED);
    CHECK(heard == 1);
    OK(yuan_engine_options_set_progress(options, count_progress, &heard));
    OK(yuan_engine_open(model, options, engine));
    CHECK(heard > 10);
    OK(yuan_engine_options_free(options));
    FAILS(yuan_engine_options_free(options), YUAN_ERROR_HANDLE);

    OK(yuan_engine_vocab_size(*engine, &vocab));
    OK(yuan_engine_hidden_size(*engine, &hidden));
    CHECK(vocab > 0 && hidden > 0);
    FAILS(yuan_engine_vocab_size(*engine, NULL), YUAN_ERROR_ARGUMENT);
    OK(yuan_engine_describe(*engine, NULL, 0, &needed));
    json = malloc(needed);
    FAILS(yuan_engine_describe(*engine, json, needed - 1, &needed), YUAN_ERROR_BUFFER_TOO_SMALL);
    OK(yuan_engine_describe(*engine, json, needed, &needed));
    CHECK(strlen(json) == needed - 1 && json[0] == '{');
    free(json);
    OK(yuan_engine_statistics(*engine, NULL, 0, &needed));
}

static size_t texts(yuan_engine *engine, uint32_t *tokens) {
    const char *text = "春日山中 李白<sep>";
    const char *roles[] = {"user", "assistant"}, *contents[] = {"a", "b"};
    char back[ROOM];
    size_t count, needed;
    uint32_t sep, chat[ROOM];

    OK(yuan_tokenize(engine, text, strlen(text), 1, tokens, ROOM, &count));
    OK(yuan_detokenize(engine, tokens, count, back, ROOM, &needed));
    CHECK(strcmp(back, text) == 0 && needed == strlen(text) + 1);
    OK(yuan_special_token(engine, "sep", &sep));
    CHECK(tokens[count - 1] == sep);
    FAILS(yuan_special_token(engine, "set", &sep), YUAN_ERROR_ARGUMENT);
    FAILS(yuan_tokenize(engine, "\xff", 1, 1, tokens, ROOM, &needed), YUAN_ERROR_ARGUMENT);
    OK(yuan_chat_tokenize(engine, roles, contents, 2, 1, chat, ROOM, &needed));
    CHECK(needed > 2);
    const char *role[] = {"user"}, *content[] = {"Ruth 1:1"};
    uint32_t same[ROOM];
    size_t length;
    OK(yuan_chat_tokenize(engine, role, content, 1, 1, chat, ROOM, &needed));
    OK(yuan_chat_tokenize_json(engine, "{\"messages\": [{\"role\": \"user\", \"content\": \"Ruth 1:1\"}]}", same, ROOM, &length));
    CHECK(length == needed && memcmp(same, chat, length * sizeof *same) == 0);
    FAILS(yuan_chat_tokenize_json(engine, "{}", same, ROOM, &length), YUAN_ERROR_ARGUMENT);
    return count;
}

static void samplers(yuan_sampler **sampler) {
    OK(yuan_sampler_new(sampler));
    OK(yuan_sampler_set_temperature(*sampler, 0.8f));
    OK(yuan_sampler_set_top_k(*sampler, 40));
    OK(yuan_sampler_set_top_p(*sampler, 0.95f));
    OK(yuan_sampler_set_min_p(*sampler, 0.01f));
    OK(yuan_sampler_set_repeat_penalty(*sampler, 1.1f));
    OK(yuan_sampler_set_presence_penalty(*sampler, 0.1f));
    OK(yuan_sampler_set_frequency_penalty(*sampler, 0.1f));
    OK(yuan_sampler_set_repeat_last_n(*sampler, 32));
    OK(yuan_sampler_set_logit_bias(*sampler, 1, -1.0f));
    OK(yuan_sampler_set_seed(*sampler, 7));
    uint64_t seed = 0;
    OK(yuan_sampler_seed(*sampler, &seed));
    CHECK(seed == 7);
    OK(yuan_sampler_set_ignore_eod(*sampler, 1));
    OK(yuan_sampler_add_stop_text(*sampler, "\n\n\n"));
    OK(yuan_sampler_add_stop_token(*sampler, 0));
    OK(yuan_sampler_reset(*sampler));
    FAILS(yuan_sampler_set_temperature(*sampler, -1.0f), YUAN_ERROR_ARGUMENT);
}

static void sessions(yuan_engine *engine, const uint32_t *tokens, size_t count, const char *file) {
    yuan_session_options *options;
    yuan_session *session, *restored;
    yuan_sampler *sampler;
    yuan_finish finish;
    size_t needed, vocab, capacity;
    uint32_t token, same, held[ROOM];
    char note[ROOM];
    float *logits;
    int heard = 0, told = 0;

    samplers(&sampler);
    OK(yuan_session_options_new(&options));
    OK(yuan_session_options_set_context(options, ROOM));
    OK(yuan_session_options_set_kv_type(options, "q8_0"));
    OK(yuan_session_options_set_context_shift(options, 1, 4));
    OK(yuan_session_new(engine, options, &session));
    OK(yuan_session_options_free(options));
    OK(yuan_session_capacity(session, &capacity));
    CHECK(capacity == ROOM);

    FAILS(yuan_session_logits(session, NULL, 0, &needed), YUAN_ERROR_ARGUMENT);
    OK(yuan_session_eval(session, tokens, count, count_progress, &told));
    CHECK(told == 1);
    OK(yuan_engine_vocab_size(engine, &vocab));
    logits = malloc(vocab * sizeof *logits);
    OK(yuan_session_logits(session, logits, vocab, &needed));
    CHECK(needed == vocab);
    OK(yuan_session_embedding(session, logits, vocab, &needed));
    free(logits);

    OK(yuan_session_set_note(session, "note", 4));
    OK(yuan_session_save(session, sampler, file));
    OK(yuan_session_sample(session, sampler, &token));
    OK(yuan_session_generate(session, sampler, 8, count_tokens, &heard, &finish));
    CHECK(heard >= 2 && finish == YUAN_FINISH_CANCELLED);
    OK(yuan_session_tokens(session, held, ROOM, &needed));
    CHECK(needed == count + 2 && memcmp(held, tokens, count * sizeof *held) == 0);
    OK(yuan_session_sync(session, tokens, count, NULL, NULL));
    /* Every token but the first has a score. */
    told = 0;
    OK(yuan_session_return_to(session, &count, 1));
    OK(yuan_session_score(session, tokens, count, 1, 2, count_scores, &told));
    CHECK(told == (int)count - 1);
    FAILS(yuan_session_score(session, tokens, count, 0, 0, NULL, NULL), YUAN_ERROR_ARGUMENT);
    /* So has every token of an answer, as it is chosen. */
    told = 0;
    OK(yuan_session_generate_scored(session, sampler, 3, 2, NULL, count_scores, &told, &finish));
    CHECK(told <= 3 && (told == 3) == (finish == YUAN_FINISH_LENGTH));
    OK(yuan_session_sync(session, tokens, count, NULL, NULL));
    /* Answers may be drafted from a text, and are the same. */
    uint64_t drafted = 1, accepted = 1;
    OK(yuan_session_draft_from(session, tokens, count));
    OK(yuan_session_drafted(session, &drafted, &accepted));
    CHECK(accepted <= drafted);
    FAILS(yuan_session_drafted(session, NULL, &accepted), YUAN_ERROR_ARGUMENT);
    OK(yuan_session_draft_from(session, NULL, 0));
    OK(yuan_session_rewind(session, count - 1));
    /* A request to stop is for the call that runs: too early or too late it stops nothing. */
    OK(yuan_session_cancel(session));
    OK(yuan_session_eval(session, tokens, count, cancel_it, session));
    OK(yuan_session_eval(session, tokens, 1, NULL, NULL));

    OK(yuan_session_restore(engine, file, NULL, sampler, &restored));
    OK(yuan_session_sample(restored, sampler, &same));
    CHECK(same == token);
    OK(yuan_session_note(restored, note, ROOM, &needed));
    CHECK(strcmp(note, "note") == 0);
    FAILS(yuan_session_restore(engine, "no/such/file", NULL, NULL, &restored), YUAN_ERROR_FILE);

    OK(yuan_session_free(session));
    FAILS(yuan_session_free(session), YUAN_ERROR_HANDLE);
    FAILS(yuan_session_eval(session, tokens, count, NULL, NULL), YUAN_ERROR_HANDLE);
    FAILS(yuan_session_eval((yuan_session *)sampler, tokens, count, NULL, NULL), YUAN_ERROR_HANDLE);
    OK(yuan_session_free(restored));
    OK(yuan_sampler_free(sampler));
}

int main(int argc, char **argv) {
    yuan_engine *engine;
    uint32_t tokens[ROOM];
    size_t count;
    int lines = 0;

    CHECK(argc == 3);
    CHECK(yuan_abi_version() == YUAN_ABI_VERSION && yuan_version()[0] != '\0');
    CHECK(strcmp(yuan_status_name(YUAN_ERROR_BUSY), "YUAN_ERROR_BUSY") == 0);
    CHECK(sizeof(yuan_status) == 4 && sizeof(yuan_finish) == 4);
    OK(yuan_log_set(count_lines, 5, &lines));
    engines(argv[1], &engine);
    count = texts(engine, tokens);
    sessions(engine, tokens, count, argv[2]);
    OK(yuan_engine_free(engine));
    OK(yuan_engine_free(NULL));
    OK(yuan_log_set(NULL, 0, NULL));
    CHECK(yuan_live_handles() == 0);
    return 0;
}
