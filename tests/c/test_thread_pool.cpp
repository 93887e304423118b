#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "core/error.h"
#include "core/thread_pool.h"

using halfbyte::ThreadPool;

TEST(every_piece_is_done_once) {
    for (const int threads : {1, 2, 3, 8}) {
        ThreadPool pool(threads);
        CHECK(pool.threads() == threads);
        for (const int64_t count : {0, 1, 7, 64, 1000}) {
            for (const int64_t grain : {1, 3, 64, 5000}) {
                std::vector<std::atomic<int>> done(static_cast<size_t>(count));
                std::atomic<bool> whole{true};
                pool.parallel_for(count, grain, [&](int64_t begin, int64_t end) {
                    if (begin % grain != 0 || (end % grain != 0 && end != count) || begin >= end) whole = false;
                    for (int64_t i = begin; i < end; i++) done[static_cast<size_t>(i)]++;
                });
                CHECK(whole);
                for (const auto& n : done) CHECK(n == 1);
            }
        }
    }
}

TEST(run_gives_every_worker_its_number) {
    ThreadPool pool(4);
    for (int round = 0; round < 200; round++) {
        std::vector<std::atomic<int>> calls(4);
        std::atomic<int> workers_seen{0};
        pool.run([&](int worker, int workers) {
            calls[static_cast<size_t>(worker)]++;
            workers_seen = workers;
        });
        int total = 0;
        for (const auto& n : calls) total += n;
        CHECK(total == workers_seen && workers_seen == 4);
    }
}

TEST(nested_calls_finish) {
    ThreadPool pool(4);
    std::atomic<int64_t> elements{0};
    pool.parallel_for(16, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) pool.parallel_for(16, 1, [&](int64_t b, int64_t e) { elements += e - b; });
    });
    CHECK(elements == 256);
}

TEST(concurrent_callers_share_a_pool) {
    ThreadPool pool(3);
    std::vector<std::thread> callers;
    std::atomic<int64_t> total{0};
    for (int t = 0; t < 6; t++)
        callers.emplace_back([&] {
            for (int round = 0; round < 200; round++)
                pool.parallel_for(100, 7, [&](int64_t begin, int64_t end) { total += end - begin; });
        });
    for (std::thread& caller : callers) caller.join();
    CHECK(total == 6 * 200 * 100);
}

TEST(exceptions_reach_the_caller_and_the_pool_lives_on) {
    ThreadPool pool(4);
    for (int round = 0; round < 50; round++) {
        const std::string error = check::error_of([&] {
            pool.parallel_for(100, 1, [&](int64_t begin, int64_t end) {
                if (begin <= round && round < end) throw std::runtime_error("piece " + std::to_string(round));
            });
        });
        CHECK(error == "piece " + std::to_string(round));
        CHECK(check::error_of([&] { pool.run([](int, int) { throw std::runtime_error("all"); }); }) == "all");
        std::atomic<int64_t> elements{0};
        pool.parallel_for(100, 1, [&](int64_t begin, int64_t end) { elements += end - begin; });
        CHECK(elements == 100);
    }
}

TEST(pools_start_and_stop) {
    for (int round = 0; round < 30; round++) {
        ThreadPool idle(3);
        ThreadPool used(2);
        used.run([](int, int) {});
    }
    CHECK(halfbyte::available_cores() >= 1);
    CHECK(ThreadPool(0).threads() == halfbyte::available_cores());
    CHECK(!check::error_of([] { ThreadPool(-1); }).empty());
}
