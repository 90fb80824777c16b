/*
 * Yuan2.0-M32 on the machine you own: the C interface of libyuan.
 *
 * Generated from src/capi by cbindgen; tests/header.rs keeps it current. Rules that hold for every function:
 *
 * Status. A function that can fail returns a yuan_status and writes its results through pointers, only when it succeeds.
 *   yuan_last_error() says what went wrong in words.
 * Handles. A yuan_something* is a number that points to nothing. A handle that is null, freed, or of another kind gives
 *   YUAN_ERROR_HANDLE. Who makes a handle frees it; freeing NULL is fine, freeing twice is an error and no more. An object that another
 *   thread frees while a call uses it lives until that call returns.
 * Threads. "Any thread": at any time, from any thread. "One call at a time": from any thread, and while another call is using the
 *   object the answer is YUAN_ERROR_BUSY. Any number of sessions may run on one engine at once.
 * Memory. Pointers are valid for what the function says until it returns; the library keeps none of them, but the log callback
 *   and the progress callback of options, with their data. Texts are UTF-8. What the library returns as a pointer belongs to the library.
 * Buffers. The caller brings them, with their capacity. The length that the answer needs is always written; with capacity 0 (the
 *   buffer may then be NULL) nothing else is, and a capacity that is too small gives YUAN_ERROR_BUFFER_TOO_SMALL.
 * Callbacks. NULL where none is wanted. They must return: no C++ exception and no longjmp may leave them. They may call the library,
 *   but the objects of the call that they come from are busy.
 * Signals. On Unix the first engine that is opened installs a handler for SIGBUS, which the system sends when a mapped file is cut off or
 *   cannot be read. Faults in files of the library become an error of the call; every other SIGBUS goes on to the handler that was there
 *   before, or does what it did. A program with a handler of its own installs it before, or hands on what is not its own. No other signal
 *   is touched.
 * Processes. A child that fork() made must not use handles of its parent: their threads are not there. The library must not be unloaded
 *   (dlclose): the threads of an engine end a moment after it.
 */


#ifndef YUAN_H
#define YUAN_H

#include <stddef.h>
#include <stdint.h>

/**
 * The version of this interface. A program compares it with what yuan_abi_version() says.
 */
#define YUAN_ABI_VERSION 6

/**
 * What a call returns. Values never change their meaning; new ones may come.
 */
enum yuan_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * It worked.
     */
    YUAN_OK = 0,
    /**
     * An argument is null, misaligned, out of range, no UTF-8, or makes no sense.
     */
    YUAN_ERROR_ARGUMENT = 1,
    /**
     * A handle is null, was freed, or is of another kind.
     */
    YUAN_ERROR_HANDLE = 2,
    /**
     * The session or the sampler is in use by another call, in another thread or around a callback.
     */
    YUAN_ERROR_BUSY = 3,
    /**
     * A callback or yuan_session_cancel stopped the call.
     */
    YUAN_ERROR_CANCELLED = 4,
    /**
     * A buffer has no room for the answer; the length that it needs was written.
     */
    YUAN_ERROR_BUFFER_TOO_SMALL = 5,
    /**
     * The context has no room for more tokens.
     */
    YUAN_ERROR_CONTEXT_FULL = 6,
    /**
     * The operating system refused to open, read or write a file.
     */
    YUAN_ERROR_FILE = 7,
    /**
     * A file is damaged, truncated, or not what its name says.
     */
    YUAN_ERROR_BAD_FILE = 8,
    /**
     * A file is sound, but asks for something that is not built.
     */
    YUAN_ERROR_UNSUPPORTED = 9,
    /**
     * The disk has no room for an output.
     */
    YUAN_ERROR_DISK_FULL = 10,
    /**
     * There is not enough memory.
     */
    YUAN_ERROR_MEMORY = 11,
    /**
     * A mistake in the library: please report it with the message. The handles of the call can only be freed.
     */
    YUAN_ERROR_INTERNAL = 12,
    /**
     * A GPU has failed. The call can be made again: it then runs without the GPU.
     */
    YUAN_ERROR_GPU = 13,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum yuan_status yuan_status;
#else
typedef int32_t yuan_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Why an answer ended.
 */
enum yuan_finish
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * With the model's end token or another stop token, which is not shown.
     */
    YUAN_FINISH_STOP = 0,
    /**
     * With a stop text, which is not shown.
     */
    YUAN_FINISH_STOP_TEXT = 1,
    /**
     * As many tokens as were asked for.
     */
    YUAN_FINISH_LENGTH = 2,
    /**
     * A callback or yuan_session_cancel ended it.
     */
    YUAN_FINISH_CANCELLED = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum yuan_finish yuan_finish;
#else
typedef int32_t yuan_finish;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * An open model with its tokenizer, shared by any number of sessions and threads. A handle: it points to nothing.
 */
typedef struct yuan_engine yuan_engine;

/**
 * How to open a model. A handle: it points to nothing.
 */
typedef struct yuan_engine_options yuan_engine_options;

/**
 * How the next token is chosen, where the random choices stand, and what ends an answer. For one call at a time. A handle: it points
 * to nothing.
 */
typedef struct yuan_sampler yuan_sampler;

/**
 * One sequence of tokens on an engine, for one call at a time. A handle: it points to nothing.
 */
typedef struct yuan_session yuan_session;

/**
 * How to make a session. A handle: it points to nothing.
 */
typedef struct yuan_session_options yuan_session_options;

/**
 * Hears a log line: its level (1 error, 2 warning, 3 information, 4 debug, 5 trace) and its text, which stands until the
 * callback returns. Called from any thread, also from several at once. It must not call the library.
 */
typedef void (*yuan_log_callback)(int32_t level, const char *message, void *user_data);

/**
 * Hears how many of `total` tokens are done, or bytes where a model is opened, on the thread that made the call. Another value than 0
 * stops the call, which returns YUAN_ERROR_CANCELLED.
 */
typedef int32_t (*yuan_progress_callback)(uint64_t done, uint64_t total, void *user_data);

/**
 * Hears the next piece of an answer, on the thread that made the call: a token, and the text that can be shown now, UTF-8 of `length` bytes
 * with a NUL behind it. The text is empty while a character or a possible stop string is incomplete; what is held back comes
 * with the next token, or at the end with the last token again. It stands until the callback returns. Another value than 0 ends
 * the answer.
 */
typedef int32_t (*yuan_token_callback)(uint32_t token, const char *text, size_t length, void *user_data);

/**
 * Hears how likely a token was in its place, on the thread that made the call: the natural logarithm of its probability, before any setting of a
 * sampler, and the likeliest tokens in its place with theirs, `count` of them, best first. A token has the same number in both. The arrays stand until
 * the callback returns. Another value than 0 stops the call, which returns YUAN_ERROR_CANCELLED.
 */
typedef int32_t (*yuan_score_callback)(uint32_t token,
                                       float logprob,
                                       const uint32_t *best,
                                       const float *best_logprobs,
                                       size_t count,
                                       void *user_data);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The version of the interface that the library was built with: `YUAN_ABI_VERSION` of its header. Any thread.
 */
uint32_t yuan_abi_version(void);

/**
 * The version of the library, as "0.1.0". The text is static. Any thread.
 */
const char *yuan_version(void);

/**
 * The message of the last call of this thread that failed: what is wrong, where, and what to do about it, in English
 * and UTF-8. Empty when none failed. The text belongs to the library and stands until the next call of this thread
 * fails. Any thread.
 */
const char *yuan_last_error(void);

/**
 * The name of a status ("YUAN_ERROR_BUSY"), or "unknown". The text is static. Any thread.
 */
const char *yuan_status_name(int32_t status);

/**
 * How many handles are open, of all kinds together: 0 when everything was freed. Any thread.
 */
size_t yuan_live_handles(void);

/**
 * Sends log lines up to `level` (1 errors only, 2 warnings too, 3 information, 4 debug, 5 all) to a callback; NULL turns the log
 * off, which it is at first. A thread that is in the old callback at that moment stays in it until it returns. Any thread.
 */
yuan_status yuan_log_set(yuan_log_callback callback,
                         int32_t level,
                         void *user_data);

/**
 * Makes options: all threads, everything else as the model says. Free them with yuan_engine_options_free; an engine keeps
 * nothing of them. Any thread.
 */
yuan_status yuan_engine_options_new(yuan_engine_options **options);

/**
 * Frees options. NULL is nothing to free. Any thread.
 */
yuan_status yuan_engine_options_free(yuan_engine_options *options);

/**
 * Threads that compute; 0 for one for each physical core that the process may use. YUAN_ERROR_ARGUMENT for more than four for each processor of
 * the machine, or 64 where that is more. One call at a time.
 */
yuan_status yuan_engine_options_set_threads(yuan_engine_options *options,
                                            size_t threads);

/**
 * Threads that compute several tokens at a time, as in a prompt; 0 for as many as otherwise. At most as many as for
 * yuan_engine_options_set_threads. One call at a time.
 */
yuan_status yuan_engine_options_set_threads_batch(yuan_engine_options *options,
                                                  size_t threads);

/**
 * Tokens of prompts and answers that go through the model together at most; 0 for the usual number. YUAN_ERROR_ARGUMENT for more than 65536. One call
 * at a time.
 */
yuan_status yuan_engine_options_set_batch_tokens(yuan_engine_options *options,
                                                 size_t tokens);

/**
 * The rotary convention in place of the model's own: "mixed", "f32" or "hfbf16"; NULL for the model's. One call at a time.
 */
yuan_status yuan_engine_options_set_rope(yuan_engine_options *options,
                                         const char *rope);

/**
 * The memory to use at most, weights and sessions all included: "8G", "6.5GiB", or "50%" of what is free; NULL, the default, for what is
 * free less a reserve. One call at a time.
 */
yuan_status yuan_engine_options_set_memory(yuan_engine_options *options,
                                           const char *memory);

/**
 * How experts come into memory: "auto" (the default: mapped where the file fits, else streamed), "mapped", "streamed" or "plain" (mapped, by
 * page faults alone). One call at a time.
 */
yuan_status yuan_engine_options_set_paging(yuan_engine_options *options,
                                           const char *paging);

/**
 * Which GPU takes part: "auto" (the default: the first suitable one, if the build and the machine have one), "off", or its number from 0, which
 * is an error of yuan_engine_open where it cannot be used. One call at a time.
 */
yuan_status yuan_engine_options_set_gpu(yuan_engine_options *options,
                                        const char *gpu);

/**
 * The memory of the GPU to use at most, as in yuan_engine_options_set_memory; NULL, the default, for what is free less a reserve. One call at
 * a time.
 */
yuan_status yuan_engine_options_set_gpu_memory(yuan_engine_options *options,
                                               const char *memory);

/**
 * Whether streamed reads go past the page cache: "auto" (the default), "on" or "off". One call at a time.
 */
yuan_status yuan_engine_options_set_direct_io(yuan_engine_options *options, const char *direct_io);

/**
 * 1 to read, where experts are streamed, what the next layer will probably want while nothing else is asked for; 0 is the default. One
 * call at a time.
 */
yuan_status yuan_engine_options_set_look_ahead(yuan_engine_options *options,
                                               int32_t on);

/**
 * The sessions that the budget of the memory leaves room for: so many tokens in all, 2^24 at most, with a key-value cache of this type. By default none: a
 * program that streams says what it needs, and has room for one full context otherwise. One call at a time.
 */
yuan_status yuan_engine_options_set_sessions(yuan_engine_options *options,
                                             size_t tokens,
                                             const char *kv_type);

/**
 * 1 to widen 4- and 8-bit weights to 32 bits instead of multiplying in integers: slow, for comparisons. 0 is the default. One call at a time.
 */
yuan_status yuan_engine_options_set_float(yuan_engine_options *options,
                                          int32_t on);

/**
 * Who hears how many bytes are there while an engine is opened with these options: of everything but the experts; and can stop it.
 * NULL, the default, for nobody. The callback runs on the thread that opens the engine, and with its data must be there until the options
 * are freed. One call at a time.
 */
yuan_status yuan_engine_options_set_progress(yuan_engine_options *options,
                                             yuan_progress_callback progress,
                                             void *user_data);

/**
 * Opens a container of yuan-quant, or a GGUF file as published, from a path; `options` may be NULL. The file must not be changed while
 * the engine is open. One that is cut off, damaged, or not to be read is an error of the call that meets it, YUAN_ERROR_BAD_FILE or
 * YUAN_ERROR_FILE, and never a signal (see "Signals" above). Free the engine with yuan_engine_free. Any thread.
 */
yuan_status yuan_engine_open(const char *path,
                             const yuan_engine_options *options,
                             yuan_engine **engine);

/**
 * Frees an engine. Its sessions go on: the model goes with the last of them. NULL is nothing to free. Any thread.
 */
yuan_status yuan_engine_free(yuan_engine *engine);

/**
 * How many tokens the vocabulary has: as many logits a session gives. Any thread.
 */
yuan_status yuan_engine_vocab_size(const yuan_engine *engine, size_t *size);

/**
 * The width of the model: as many numbers an embedding has. Any thread.
 */
yuan_status yuan_engine_hidden_size(const yuan_engine *engine, size_t *size);

/**
 * What the model is and how it runs, as a JSON object of which keys may be added: its shape, layout, kernels, threads. Writes
 * up to `capacity` bytes to `json`, the NUL among them, and the bytes that it needs to `needed`. Any thread.
 */
yuan_status yuan_engine_describe(const yuan_engine *engine,
                                 char *json,
                                 size_t capacity,
                                 size_t *needed);

/**
 * What the engine did so far for all its sessions, as a JSON object of which keys may be added.
 *
 * Where the weights are: "mode" ("plain", "mapped" or "streamed") and "why"; "budget" (bytes) and "budget_is" (what set it); "trunk_bytes",
 * "kv_bytes", "pool_bytes" (that all sessions may take together), "scratch_bytes", "arena_bytes", "experts", "experts_resident", "expert_bytes", "batch"; "peak_memory" (of the process);
 * "sessions", an object: the "bytes" that they take of the pool, their "pages" of 512 tokens, those of them that several sessions share ("shared_pages"), and
 * those of earlier sessions that are kept ("kept_pages").
 * "gpu" is an object with the "device" (or null, and "why"), the bytes that it holds as above and "embedding_bytes" (0 where the embedding
 * stays with the host), "experts_there" (that it has room for), "kv_pages" (of 512 positions each) and "bandwidth"; "gpu_use" null or an object that counts experts that were
 * "there", "copied" to it, or computed "on_cpu", and the "bytes_copied".
 *
 * Since the engine was opened: "tokens" and "seconds"; "expert_hits", "expert_misses" and "hit_rate" of what layers asked for, and
 * apart from them "guesses_right" and "guesses_wrong" of what was read ahead; "bytes_read", "bytes_read_per_token", "drive_seconds"
 * (at least one read was under way), "drive_gb_per_second", "stall_ms" (a thread waited for reads, on average), "retries";
 * "major_faults" and "storage_bytes_read" (of the process). "prefill" and "decode" are objects with the tokens, seconds, hits and
 * misses of calls with several tokens and with one. "token_ms" has "p50" and "p95" of the last 1024 calls with one token. "loop" is an
 * object about the passes that all sessions share: their number ("passes"), their "tokens" and "sequences" added up, the "most_sequences" of one,
 * the "longest_line" of work that waited for one, "waited_ms" (how long work has waited, added up), "panics" (mistakes in the library),
 * and the "drafted" tokens among them, of which so many were "accepted" as the next.
 *
 * `json`, `capacity` and `needed` are as in yuan_engine_describe; the text grows with its numbers. Any thread.
 */
yuan_status yuan_engine_statistics(const yuan_engine *engine,
                                   char *json,
                                   size_t capacity,
                                   size_t *needed);

/**
 * The tokens of a text, UTF-8 of `length` bytes. With `parse_special` (not 0) special strings such as `<sep>` become special tokens:
 * for what a program composed; with 0 they are text: for what a person wrote. Nothing is added at either end. Writes up to
 * `capacity` tokens, and how many there are to `count`; with capacity 0 `tokens` may be NULL. Any thread.
 */
yuan_status yuan_tokenize(const yuan_engine *engine,
                          const char *text,
                          size_t length,
                          int32_t parse_special,
                          uint32_t *tokens,
                          size_t capacity,
                          size_t *count);

/**
 * The text of tokens, special tokens as their strings, and what is no UTF-8 as U+FFFD. Tokens outside the vocabulary are nothing.
 * Writes up to `capacity` bytes with a NUL at the end, and the bytes that it needs, the NUL among them, to `needed`. Any thread.
 */
yuan_status yuan_detokenize(const yuan_engine *engine,
                            const uint32_t *tokens,
                            size_t count,
                            char *text,
                            size_t capacity,
                            size_t *needed);

/**
 * The tokens of a conversation in the form of the model's own template: `count` turns, each with a role ("system", "user",
 * "assistant") and a content, NUL-terminated. Special strings in them stay text. With `add_generation_prompt` (not 0) the
 * conversation is closed so that the model answers. `tokens`, `capacity` and `needed` are as in yuan_tokenize. Any thread.
 */
yuan_status yuan_chat_tokenize(const yuan_engine *engine,
                               const char *const *roles,
                               const char *const *contents,
                               size_t count,
                               int32_t add_generation_prompt,
                               uint32_t *tokens,
                               size_t capacity,
                               size_t *needed);

/**
 * The tokens of a conversation with all that a template can be told: `chat` is JSON as OpenAI's clients write it, NUL-terminated,
 * `{"messages": [{"role", "content", "reasoning_content", "tool_calls"}], "tools": […], "enable_thinking": true, "add_generation_prompt": true}`. Special
 * strings in it stay text. `tokens`, `capacity` and `needed` are as in yuan_tokenize. Any thread.
 */
yuan_status yuan_chat_tokenize_json(const yuan_engine *engine,
                                    const char *chat,
                                    uint32_t *tokens,
                                    size_t capacity,
                                    size_t *needed);

/**
 * The id of a special token: "eod" (ends an answer), "sep" (ends a prompt) or "pad"; `YUAN_ERROR_ARGUMENT` where the model has none.
 * Any thread.
 */
yuan_status yuan_special_token(const yuan_engine *engine,
                               const char *name,
                               uint32_t *token);

/**
 * Makes options: the context that the model was made for, a key-value cache in f16. Free them with
 * yuan_session_options_free; a session keeps nothing of them. Any thread.
 */
yuan_status yuan_session_options_new(yuan_session_options **options);

/**
 * Frees options. NULL is nothing to free. Any thread.
 */
yuan_status yuan_session_options_free(yuan_session_options *options);

/**
 * Room for this many tokens, prompt and answer, 2^24 at most; 0 for what the model was made for. Memory is used as the session fills. One call
 * at a time.
 */
yuan_status yuan_session_options_set_context(yuan_session_options *options,
                                             size_t tokens);

/**
 * The type of the key-value cache: "f16", "q8_0", "q4_0" or "f32", or two of them for keys and values, as in "q8_0:q4_0". One call at a time.
 */
yuan_status yuan_session_options_set_kv_type(yuan_session_options *options,
                                             const char *kv_type);

/**
 * What happens when an answer fills the context: by default, and with `on` 0, an error. With 1 the first `keep` tokens are kept, the older
 * half of the others is dropped, and the rest is run again. One call at a time.
 */
yuan_status yuan_session_options_set_context_shift(yuan_session_options *options,
                                                   int32_t on,
                                                   size_t keep);

/**
 * Whether the next tokens of answers are guessed from what was said before, and up to 3 of them checked in the pass of a token: "auto", which is what happens where nothing is
 * said, as far as that is faster; "off"; or "1", "2" or "3" wherever there is a guess. Answers are the same. One call at a time.
 */
yuan_status yuan_session_options_set_draft(yuan_session_options *options,
                                           const char *draft);

/**
 * Makes an empty session on an engine; `options` may be NULL. Free it with yuan_session_free. Any thread.
 */
yuan_status yuan_session_new(const yuan_engine *engine,
                             const yuan_session_options *options,
                             yuan_session **session);

/**
 * Frees a session; a call that is using it in another thread is cancelled. NULL is nothing to free. Any thread.
 */
yuan_status yuan_session_free(yuan_session *session);

/**
 * Stops the call that is running tokens on the session: it returns YUAN_ERROR_CANCELLED (yuan_session_generate: YUAN_OK, with a finish that says
 * so), and the session holds the tokens that were run. Where none is running nothing happens: a request that comes too late does not stop the
 * next call. Any thread.
 */
yuan_status yuan_session_cancel(const yuan_session *session);

/**
 * How many tokens the session has room for. One call at a time.
 */
yuan_status yuan_session_capacity(const yuan_session *session, size_t *capacity);

/**
 * Copies the tokens that the session holds, and writes how many they are to `count`. One call at a time.
 */
yuan_status yuan_session_tokens(const yuan_session *session,
                                uint32_t *tokens,
                                size_t capacity,
                                size_t *count);

/**
 * Runs `count` tokens behind those that the session holds. `progress` may be NULL. When it is stopped the session holds what was
 * run. One call at a time.
 */
yuan_status yuan_session_eval(yuan_session *session,
                              const uint32_t *tokens,
                              size_t count,
                              yuan_progress_callback progress,
                              void *user_data);

/**
 * Makes the session hold exactly these tokens. What it has in common with them at the beginning is not run again, but for a few
 * tokens before the first difference; the result is the same bit for bit. `progress` may be NULL. One call at a time.
 */
yuan_status yuan_session_sync(yuan_session *session,
                              const uint32_t *tokens,
                              size_t count,
                              yuan_progress_callback progress,
                              void *user_data);

/**
 * Keeps a text of the program with the session, in the files that it is saved to too; UTF-8 of `length` bytes, in place of an earlier one. One call
 * at a time.
 */
yuan_status yuan_session_set_note(yuan_session *session,
                                  const char *note,
                                  size_t length);

/**
 * Copies the text that was kept with the session, with a NUL behind it, and writes the bytes that it needs to `needed`. One call
 * at a time.
 */
yuan_status yuan_session_note(const yuan_session *session,
                              char *note,
                              size_t capacity,
                              size_t *needed);

/**
 * Keeps the first `position` tokens, which may be 0 and no more than there are. One call at a time.
 */
yuan_status yuan_session_rewind(yuan_session *session, size_t position);

/**
 * Copies the logits behind the last token, one for every token of the vocabulary (yuan_engine_vocab_size). One call at a time.
 */
yuan_status yuan_session_logits(yuan_session *session,
                                float *logits,
                                size_t capacity,
                                size_t *count);

/**
 * Copies the last hidden state of the last token (behind the final norm), yuan_engine_hidden_size numbers: an embedding of all tokens.
 * One call at a time.
 */
yuan_status yuan_session_embedding(yuan_session *session,
                                   float *embedding,
                                   size_t capacity,
                                   size_t *count);

/**
 * Chooses the next token from the logits behind the last. It is not run: yuan_session_eval does that. One call at a time, for the
 * session and for the sampler.
 */
yuan_status yuan_session_sample(yuan_session *session,
                                yuan_sampler *sampler,
                                uint32_t *token);

/**
 * Makes a sampler that always takes the best token, until the model ends the answer. The chain is bias, penalties, top-k, top-p,
 * min-p, temperature, and a draw. A setting holds from the next token on. Free it with yuan_sampler_free. Any thread.
 */
yuan_status yuan_sampler_new(yuan_sampler **sampler);

/**
 * Frees a sampler. NULL is nothing to free. Any thread.
 */
yuan_status yuan_sampler_free(yuan_sampler *sampler);

/**
 * Begins the random choices anew, with the settings and the seed as they are. One call at a time.
 */
yuan_status yuan_sampler_reset(yuan_sampler *sampler);

/**
 * Divides the logits; 0, the default, always takes the best token. No setting may be above 10^9. One call at a time.
 */
yuan_status yuan_sampler_set_temperature(yuan_sampler *sampler,
                                         float temperature);

/**
 * Keeps the k best tokens; 0, the default, keeps all. One call at a time.
 */
yuan_status yuan_sampler_set_top_k(yuan_sampler *sampler, size_t k);

/**
 * Keeps the fewest best tokens whose probabilities reach this sum; 1, the default, keeps all. One call at a time.
 */
yuan_status yuan_sampler_set_top_p(yuan_sampler *sampler,
                                   float p);

/**
 * Keeps the tokens with at least this part of the probability of the best; 0, the default, keeps all. One call at a time.
 */
yuan_status yuan_sampler_set_min_p(yuan_sampler *sampler,
                                   float p);

/**
 * Divides the logits of recent tokens where they are positive, and multiplies them where they are negative; 1, the default, is none. One
 * call at a time.
 */
yuan_status yuan_sampler_set_repeat_penalty(yuan_sampler *sampler,
                                            float penalty);

/**
 * Taken from the logits of recent tokens; 0, the default, is none. One call at a time.
 */
yuan_status yuan_sampler_set_presence_penalty(yuan_sampler *sampler, float penalty);

/**
 * Taken from the logits of recent tokens as often as they occur; 0, the default, is none. One call at a time.
 */
yuan_status yuan_sampler_set_frequency_penalty(yuan_sampler *sampler, float penalty);

/**
 * How many tokens are recent, the prompt's among them: 64 by default, 0 for none, SIZE_MAX for all. One call at a time.
 */
yuan_status yuan_sampler_set_repeat_last_n(yuan_sampler *sampler,
                                           size_t tokens);

/**
 * Adds to the logit of a token; minus infinity forbids it, and 0 takes an earlier bias back. One call at a time.
 */
yuan_status yuan_sampler_set_logit_bias(yuan_sampler *sampler,
                                        uint32_t token,
                                        float bias);

/**
 * The same seed gives the same choices from the same logits, on every machine. A sampler whose seed is not set has a random one. One call at a
 * time.
 */
yuan_status yuan_sampler_set_seed(yuan_sampler *sampler,
                                  uint64_t seed);

/**
 * The seed of the random choices: the one that was set, or the one that was taken at random. One call at a time.
 */
yuan_status yuan_sampler_seed(const yuan_sampler *sampler,
                              uint64_t *seed);

/**
 * A text that ends an answer, wherever the borders of tokens are; it is not shown. One call at a time.
 */
yuan_status yuan_sampler_add_stop_text(yuan_sampler *sampler, const char *text);

/**
 * A token that ends an answer beside the model's end token; it is no part of the answer. One call at a time.
 */
yuan_status yuan_sampler_add_stop_token(yuan_sampler *sampler, uint32_t token);

/**
 * 1 to go on after the model's end token; 0 is the default. One call at a time.
 */
yuan_status yuan_sampler_set_ignore_eod(yuan_sampler *sampler, int32_t ignore);

/**
 * Chooses up to `most` tokens (SIZE_MAX for no limit) behind those that the session holds, adds them to it, and shows each to `on_token`, which may be
 * NULL, as may `finish`. YUAN_ERROR_CONTEXT_FULL when there is no room for the answer; the session keeps what was shown. One call
 * at a time, for the session and for the sampler.
 */
yuan_status yuan_session_generate(yuan_session *session,
                                  yuan_sampler *sampler,
                                  size_t most,
                                  yuan_token_callback on_token,
                                  void *user_data,
                                  yuan_finish *finish);

/**
 * As yuan_session_generate, and tells `on_score`, which may be NULL, of each token how likely it was, with the `top` likeliest in its place, before `on_token` hears of
 * it. Both get `user_data`; another value than 0 of either ends the answer. One call at a time, for the session and for the sampler.
 */
yuan_status yuan_session_generate_scored(yuan_session *session,
                                         yuan_sampler *sampler,
                                         size_t most,
                                         size_t top,
                                         yuan_token_callback on_token,
                                         yuan_score_callback on_score,
                                         void *user_data,
                                         yuan_finish *finish);

/**
 * Makes the session hold exactly these tokens, as yuan_session_sync, and tells `on_score`, which may be NULL, of each token from the place `from` on how
 * likely it was behind those before it, with the `top` likeliest in its place. `from` is 1 or more, since the first token has nothing before it, and
 * `count` at most. What lists have in common at their beginning is not run again, in this session or in another. One call at a time.
 */
yuan_status yuan_session_score(yuan_session *session,
                               const uint32_t *tokens,
                               size_t count,
                               size_t from,
                               size_t top,
                               yuan_score_callback on_score,
                               void *user_data);

/**
 * Keeps what it takes to go back to these places, 15 at most, as yuan_session_sync and yuan_session_score pass them: of another list that is the
 * same up to there nothing is run again before it, or for scores one token. Without it a few tokens more are. It holds until it is said anew. One call at a
 * time.
 */
yuan_status yuan_session_return_to(yuan_session *session,
                                   const size_t *places,
                                   size_t count);

/**
 * Drafts answers from these tokens, too: a text that they will probably quote, or begin with, of 131,072 tokens at most, in place of an earlier one; 0 tokens are none. The
 * session keeps a copy. Answers are the same with drafts and without, token by token. One call at a time.
 */
yuan_status yuan_session_draft_from(yuan_session *session,
                                    const uint32_t *tokens,
                                    size_t count);

/**
 * Writes how many tokens of answers the session has guessed and run so far to `drafted`, and how many of them were the next tokens to `accepted`. One call at a time.
 */
yuan_status yuan_session_drafted(const yuan_session *session,
                                 uint64_t *drafted,
                                 uint64_t *accepted);

/**
 * From now on yuan_session_generate answers with JSON that meets this JSON schema: tokens that do not fit are not chosen, what has to follow is not
 * computed, and the answer ends when it is complete. {"type": "object"} is any object. It takes the place of a grammar or an expression; NULL takes
 * it away. YUAN_ERROR_ARGUMENT when it is no schema, has parts that are not supported, or is met by nothing; what was set before stays then. One
 * call at a time.
 */
yuan_status yuan_session_set_json_schema(yuan_session *session,
                                         const char *schema);

/**
 * As yuan_session_set_json_schema: answers are texts of this grammar, in Lark's notation with the rule "start".
 */
yuan_status yuan_session_set_grammar(yuan_session *session,
                                     const char *lark);

/**
 * As yuan_session_set_json_schema: answers are texts that this regular expression matches as a whole.
 */
yuan_status yuan_session_set_regex(yuan_session *session, const char *regex);

/**
 * Writes a session to a file, and where the random choices of a sampler stand, which may be NULL. A file of that name is replaced when the
 * new one is whole. One call at a time, for the session and for the sampler.
 */
yuan_status yuan_session_save(const yuan_session *session,
                              const yuan_sampler *sampler,
                              const char *path);

/**
 * Makes a session of a file: it goes on with the bits that it would have had without the pause. The file must be of the same model, opened with
 * the same rotary convention and arithmetic. `options` may be NULL: then the room for tokens is what it was; the type of the
 * key-value cache is always the file's. `sampler` may be NULL; where the file has a sampler it becomes that one. Free the session with
 * yuan_session_free. Any thread; one call at a time for the sampler.
 */
yuan_status yuan_session_restore(const yuan_engine *engine,
                                 const char *path,
                                 const yuan_session_options *options,
                                 yuan_sampler *sampler,
                                 yuan_session **session);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* YUAN_H */
