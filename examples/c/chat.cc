// Answers one question in the model's chat form: chat MODEL QUESTION [TOKENS [SEED]].
//
//     c++ -std=c++11 chat.cc $(pkg-config --cflags --libs yuan) -o chat
#include <cstdlib>
#include <exception>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <yuan.h>

namespace {

void check(yuan_status status) {
    if (status != YUAN_OK) throw std::runtime_error(std::string(yuan_status_name(status)) + ": " + yuan_last_error());
}

// Handles that free themselves.
struct Free {
    void operator()(yuan_engine *engine) const { yuan_engine_free(engine); }
    void operator()(yuan_session *session) const { yuan_session_free(session); }
    void operator()(yuan_sampler *sampler) const { yuan_sampler_free(sampler); }
};
using Engine = std::unique_ptr<yuan_engine, Free>;
using Session = std::unique_ptr<yuan_session, Free>;
using Sampler = std::unique_ptr<yuan_sampler, Free>;

Engine open(const char *path) {
    yuan_engine *engine = nullptr;
    check(yuan_engine_open(path, nullptr, &engine));
    return Engine(engine);
}

Session session_on(const Engine &engine) {
    yuan_session *session = nullptr;
    check(yuan_session_new(engine.get(), nullptr, &session));
    return Session(session);
}

Sampler sampler_with(std::uint64_t seed) {
    yuan_sampler *made = nullptr;
    check(yuan_sampler_new(&made));
    Sampler sampler(made);
    check(yuan_sampler_set_temperature(made, 0.6f));
    check(yuan_sampler_set_top_p(made, 0.95f));
    check(yuan_sampler_set_seed(made, seed));
    return sampler;
}

std::vector<std::uint32_t> question(const Engine &engine, const char *text) {
    const char *role = "user";
    std::size_t count = 0;
    check(yuan_chat_tokenize(engine.get(), &role, &text, 1, 1, nullptr, 0, &count));
    std::vector<std::uint32_t> tokens(count);
    check(yuan_chat_tokenize(engine.get(), &role, &text, 1, 1, tokens.data(), tokens.size(), &count));
    return tokens;
}

// Called from C: no exception may leave it.
std::int32_t show(std::uint32_t, const char *text, std::size_t length, void *user_data) noexcept {
    auto &out = *static_cast<std::ostream *>(user_data);
    out.write(text, static_cast<std::streamsize>(length)).flush();
    return out.good() ? 0 : 1;
}

}  // namespace

int main(int argc, char **argv) {
    if (argc < 3 || argc > 5) {
        std::cerr << "usage: " << argv[0] << " MODEL QUESTION [TOKENS [SEED]]\n";
        return 2;
    }
    try {
        const auto engine = open(argv[1]);
        const auto session = session_on(engine);
        const auto sampler = sampler_with(argc > 4 ? std::strtoull(argv[4], nullptr, 10) : 0);
        const auto tokens = question(engine, argv[2]);
        check(yuan_session_eval(session.get(), tokens.data(), tokens.size(), nullptr, nullptr));
        const std::size_t most = argc > 3 ? std::strtoul(argv[3], nullptr, 10) : 256;
        check(yuan_session_generate(session.get(), sampler.get(), most, show, &std::cout, nullptr));
        std::cout << '\n';
    } catch (const std::exception &error) {
        std::cerr << "error: " << error.what() << '\n';
        return 1;
    }
    return 0;
}
