/*
 * Continues a prompt: generate MODEL PROMPT [TOKENS].
 *
 *     cc generate.c $(pkg-config --cflags --libs yuan) -o generate
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <yuan.h>

/* Says what went wrong with the last call. */
static int failed(const char *what, yuan_status status) {
    fprintf(stderr, "%s: %s: %s\n", what, yuan_status_name(status), yuan_last_error());
    return 1;
}

static int32_t show(uint32_t token, const char *text, size_t length, void *user_data) {
    (void)token;
    (void)user_data;
    fwrite(text, 1, length, stdout);
    fflush(stdout);
    return 0; /* another value would end the answer */
}

static int run(yuan_engine *engine, yuan_session *session, yuan_sampler *sampler, const char *prompt, size_t most) {
    yuan_status status;
    yuan_finish finish;
    uint32_t *tokens;
    size_t count;

    /* Once for the length, once for the tokens. Special strings in the prompt become special tokens. */
    status = yuan_tokenize(engine, prompt, strlen(prompt), 1, NULL, 0, &count);
    if (status != YUAN_OK) return failed("tokenize", status);
    tokens = malloc((count + 1) * sizeof *tokens);
    if (tokens == NULL) return 1;
    status = yuan_tokenize(engine, prompt, strlen(prompt), 1, tokens, count, &count);
    if (status == YUAN_OK) status = yuan_session_eval(session, tokens, count, NULL, NULL);
    free(tokens);
    if (status != YUAN_OK) return failed("prompt", status);

    status = yuan_session_generate(session, sampler, most, show, NULL, &finish);
    if (status != YUAN_OK) return failed("generate", status);
    putchar('\n');
    return 0;
}

int main(int argc, char **argv) {
    yuan_engine *engine = NULL;
    yuan_session *session = NULL;
    yuan_sampler *sampler = NULL;
    yuan_status status;
    int code;

    if (argc < 3 || argc > 4) {
        fprintf(stderr, "usage: %s MODEL PROMPT [TOKENS]\n", argv[0]);
        return 2;
    }
    if (yuan_abi_version() != YUAN_ABI_VERSION) {
        fprintf(stderr, "libyuan %s has another interface than this program\n", yuan_version());
        return 1;
    }
    status = yuan_engine_open(argv[1], NULL, &engine);
    if (status == YUAN_OK) status = yuan_session_new(engine, NULL, &session);
    if (status == YUAN_OK) status = yuan_sampler_new(&sampler);
    if (status == YUAN_OK) {
        code = run(engine, session, sampler, argv[2], argc == 4 ? strtoul(argv[3], NULL, 10) : 64);
    } else {
        code = failed(argv[1], status);
    }
    /* In any order; NULL is nothing to free. */
    yuan_engine_free(engine);
    yuan_session_free(session);
    yuan_sampler_free(sampler);
    return code;
}
