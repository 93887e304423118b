#include "core/thread_pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "core/error.h"

namespace halfbyte {

namespace {

constexpr int kMaxThreads = 1024;
// Waiting: some 50 microseconds of pauses, longer than the gap between two ops of a model; then whoever else wants the core may
// have it for a while; then sleep. Waking a sleeper costs up to 100 microseconds, and between two tokens a caller samples and
// prints: sleeping there would slow every token.
constexpr int kPauses = 3000;
constexpr auto kLongestSpin = std::chrono::microseconds(1000);

void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

/// Spins until `ready()`; false if that took too long.
template <class Ready>
bool spin_until(Ready ready) {
    for (int i = 0; i < kPauses; i++) {
        if (ready()) return true;
        pause();
    }
    const auto end = std::chrono::steady_clock::now() + kLongestSpin;
    do {
        if (ready()) return true;
        sched_yield();
    } while (std::chrono::steady_clock::now() < end);
    return false;
}

// Counts the forks that lie between this process and the first one; a pool remembers the count it was made under.
std::atomic<uint64_t> forks{0};

void watch_forks() {
    static const int registered = pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1, std::memory_order_relaxed); });
    (void)registered;
}

// What is left of one thread's part of a parallel_for: groups begin .. end in the upper and lower half of one word. Its owner
// takes from the front, so that it reads one stream of memory; who has finished takes from the back of another's.
struct alignas(64) Share {
    std::atomic<uint64_t> left{0};

    void set(uint64_t begin, uint64_t end) { left.store(begin << 32 | end, std::memory_order_relaxed); }
    /// At most `most` groups and half of what is left; false if nothing is.
    bool take(bool front, uint64_t most, int64_t* begin, int64_t* end) {
        uint64_t now = left.load(std::memory_order_relaxed), next;
        do {
            const uint64_t first = now >> 32, last = now & 0xffffffffu;
            if (first >= last) return false;
            const uint64_t count = std::min(most, (last - first + 1) / 2);
            next = front ? (first + count) << 32 | last : first << 32 | (last - count);
            *begin = int64_t(front ? first : last - count), *end = *begin + int64_t(count);
        } while (!left.compare_exchange_weak(now, next, std::memory_order_relaxed));
        return true;
    }
};

}  // namespace

// The gate is one word: | job number 32 | - | closed 1 | left 15 | entered 15 |. A worker enters a job by adding 1 to
// `entered` while the gate is open under that number, and leaves by adding 1 to `left`. The caller closes the gate and waits
// until left == entered: workers that wake up too late find it closed and touch nothing.
struct ThreadPool::State {
    static constexpr uint64_t kEnter = 1, kLeave = 1u << 15, kClosed = 1u << 30;
    static uint32_t number(uint64_t gate) { return uint32_t(gate >> 32); }
    static int entered(uint64_t gate) { return int(gate & 0x7fff); }
    static int left(uint64_t gate) { return int((gate >> 15) & 0x7fff); }

    std::atomic<uint64_t> gate{kClosed};
    std::atomic<bool> busy{false};
    std::atomic<int> sleepers{0};
    std::atomic<bool> caller_sleeps{false};
    std::atomic<bool> stop{false};
    const FunctionRef<void(int, int)>* job = nullptr;
    std::mutex mutex;
    std::condition_variable work, done;
    std::exception_ptr error;  // guarded by mutex
    std::atomic<bool> failed{false};
    std::atomic<uint64_t> regions{0};
    std::unique_ptr<Share[]> shares;  // one a thread
    std::vector<std::thread> threads;
    uint64_t forks_at_start = 0;

    bool forked() const { return forks.load(std::memory_order_relaxed) != forks_at_start; }

    void call(int worker, int workers) noexcept {
        try {
            (*job)(worker, workers);
        } catch (...) {
            const std::lock_guard lock(mutex);
            if (!error) error = std::current_exception();
            failed.store(true, std::memory_order_relaxed);
        }
    }

    void work_loop(int worker, int workers) {
        uint32_t seen = 0;
        for (;;) {
            uint64_t now = 0;
            const auto called = [&] {
                now = gate.load(std::memory_order_acquire);
                return number(now) != seen || stop.load(std::memory_order_relaxed);
            };
            if (!spin_until(called)) {
                std::unique_lock lock(mutex);
                sleepers.fetch_add(1);
                work.wait(lock, [&] { return number(gate.load()) != seen || stop.load(); });
                sleepers.fetch_sub(1);
                now = gate.load();
            }
            if (stop.load()) return;
            seen = number(now);
            while (number(now) == seen && !(now & kClosed)) {
                if (!gate.compare_exchange_weak(now, now + kEnter, std::memory_order_acq_rel)) continue;
                call(worker, workers);
                gate.fetch_add(kLeave);
                if (caller_sleeps.load()) {
                    const std::lock_guard lock(mutex);
                    done.notify_one();
                }
                break;
            }
        }
    }

    void open(const FunctionRef<void(int, int)>& next) {
        job = &next;
        gate.store(uint64_t(number(gate.load(std::memory_order_relaxed)) + 1) << 32);
        // A worker counts itself asleep before it looks at the gate for the last time, and both are sequentially consistent:
        // either it sees the new number or it is seen here.
        if (sleepers.load() > 0) {
            const std::lock_guard lock(mutex);
            work.notify_all();
        }
    }

    template <class Finished>
    void wait(Finished finished) {
        if (spin_until([&] { return finished(gate.load(std::memory_order_acquire)); })) return;
        std::unique_lock lock(mutex);
        caller_sleeps.store(true);
        done.wait(lock, [&] { return finished(gate.load()); });
        caller_sleeps.store(false);
    }

    /// everyone: every thread takes part. Otherwise only those that come before the caller is done.
    void fork_join(const FunctionRef<void(int, int)>& next, bool everyone) {
        const int workers = int(threads.size()) + 1;
        regions.fetch_add(1, std::memory_order_relaxed);
        open(next);
        call(0, workers);
        if (everyone) wait([&](uint64_t g) { return left(g) == workers - 1; });
        gate.fetch_or(kClosed);
        wait([](uint64_t g) { return left(g) == entered(g); });
        std::exception_ptr thrown;
        if (failed.load(std::memory_order_relaxed)) {
            const std::lock_guard lock(mutex);
            std::swap(thrown, error);
            failed.store(false, std::memory_order_relaxed);
        }
        busy.store(false, std::memory_order_release);
        if (thrown) std::rethrow_exception(thrown);
    }

    bool acquire() { return !threads.empty() && !forked() && !busy.exchange(true, std::memory_order_acquire); }

    void join() {
        {
            const std::lock_guard lock(mutex);
            stop.store(true);
            work.notify_all();
        }
        for (std::thread& thread : threads) thread.join();
    }
};

ThreadPool::ThreadPool(int threads)
    : threads_(threads == 0 ? available_cores() : threads), state_(std::make_unique<State>()) {
    if (threads < 0 || threads_ > kMaxThreads)
        fail(ErrorCode::invalid_argument, "threads: expected 0 (one per core) to ", kMaxThreads, ", found ", threads);
    watch_forks();
    state_->forks_at_start = forks.load(std::memory_order_relaxed);
    if (threads_ == 1) return;
    state_->shares = std::make_unique<Share[]>(size_t(threads_));
    // Workers inherit a mask that blocks every signal: Ctrl-C belongs to the threads of the host program.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
        state_->threads.reserve(size_t(threads_ - 1));
        for (int i = 1; i < threads_; i++)
            state_->threads.emplace_back([state = state_.get(), i, n = threads_] { state->work_loop(i, n); });
    } catch (const std::system_error& error) {
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        state_->join();
        fail(ErrorCode::out_of_memory, "the operating system refused to start thread ", state_->threads.size() + 1, " of ",
             threads_, ": ", error.what(), "; ask for fewer threads");
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

ThreadPool::~ThreadPool() {
    if (state_->forked()) {
        // The threads, and whoever held the mutex, stayed in the parent: there is nothing here that can be waited for.
        (void)state_.release();
        return;
    }
    state_->join();
}

void ThreadPool::run(FunctionRef<void(int, int)> job) {
    if (!state_->acquire()) return job(0, 1);
    state_->fork_join(job, true);
}

void ThreadPool::parallel_for(int64_t count, int64_t grain, FunctionRef<void(int64_t, int64_t)> f) {
    if (count <= 0) return;
    grain = std::max({grain, int64_t(1), count >> 31});  // groups fit into 32 bits
    const int64_t groups = (count + grain - 1) / grain;
    if (groups == 1 || !state_->acquire()) return f(0, count);
    Share* const shares = state_->shares.get();
    const int threads = threads_;
    for (int i = 0; i < threads; i++) shares[i].set(uint64_t(groups * i / threads), uint64_t(groups * (i + 1) / threads));
    // A quarter of a share at a time, and ever less towards its end: few claims, and all threads end together.
    const auto piece = uint64_t(std::max<int64_t>(1, groups / (4 * threads)));
    const auto claim = [&](int worker, int) {
        try {
            for (int other = 0; other < threads; other++) {
                Share& share = shares[(worker + other) % threads];
                for (int64_t begin, end; share.take(other == 0, piece, &begin, &end);)
                    f(begin * grain, std::min(end * grain, count));
            }
        } catch (...) {
            for (int i = 0; i < threads; i++) shares[i].set(0, 0);  // the others need not finish
            throw;
        }
    };
    state_->fork_join(claim, false);
}

uint64_t ThreadPool::regions() const { return state_->regions.load(std::memory_order_relaxed); }

namespace {

/// Cores' worth of time that a cgroup grants: quota / period, rounded up; 0 where there is no limit.
int quota_of(double quota, double period) { return quota > 0 && period > 0 ? int((quota + period - 1) / period) : 0; }

int cgroup_limit() {
    int limit = 0;
    const auto tighten = [&](int found) {
        if (found > 0 && (limit == 0 || found < limit)) limit = found;
    };
    std::ifstream membership("/proc/self/cgroup");
    for (std::string line; std::getline(membership, line);) {
        const size_t first = line.find(':'), second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) continue;
        const std::string controllers = line.substr(first + 1, second - first - 1);
        const bool unified = controllers.empty();
        if (!unified && controllers.find("cpu") == std::string::npos) continue;
        // A group is bound by its ancestors too. Inside a container the path may name the host's hierarchy: the root is read
        // anyway.
        for (std::string path = line.substr(second + 1);; path.erase(path.find_last_of('/'))) {
            if (path == "/") path.clear();
            std::string quota;
            double period = 0;
            if (unified) {
                std::ifstream file("/sys/fs/cgroup" + path + "/cpu.max");
                if (file >> quota >> period && quota != "max") tighten(quota_of(std::atof(quota.c_str()), period));
            } else {
                std::ifstream quota_file("/sys/fs/cgroup/cpu" + path + "/cpu.cfs_quota_us");
                std::ifstream period_file("/sys/fs/cgroup/cpu" + path + "/cpu.cfs_period_us");
                if (quota_file >> quota && period_file >> period) tighten(quota_of(std::atof(quota.c_str()), period));
            }
            if (path.find('/') == std::string::npos) break;
        }
    }
    return limit;
}

int affinity_cores() {
    for (int capacity = 1024; capacity <= 1 << 20; capacity *= 4) {
        cpu_set_t* set = CPU_ALLOC(size_t(capacity));
        if (set == nullptr) break;
        const size_t bytes = CPU_ALLOC_SIZE(size_t(capacity));
        const int status = sched_getaffinity(0, bytes, set);
        const int count = status == 0 ? CPU_COUNT_S(bytes, set) : 0;
        CPU_FREE(set);
        if (status == 0) return count;
    }
    return int(std::thread::hardware_concurrency());
}

}  // namespace

int available_cores() {
    const int cores = std::max(1, affinity_cores()), limit = cgroup_limit();
    return std::min(kMaxThreads, limit > 0 ? std::min(cores, limit) : cores);
}

}  // namespace halfbyte
