// Fork and join over a fixed set of threads, made for work that lasts microseconds.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>

namespace halfbyte {

/// A reference to a callable that outlives the call it is passed to; never allocates.
template <class Signature>
class FunctionRef;

template <class Result, class... Args>
class FunctionRef<Result(Args...)> {
public:
    template <class F>
        requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef>)
    FunctionRef(F&& f)  // NOLINT: implicit by design
        : object_(const_cast<void*>(static_cast<const void*>(&f))), call_([](void* object, Args... args) -> Result {
              return (*static_cast<std::remove_reference_t<F>*>(object))(std::forward<Args>(args)...);
          }) {}
    Result operator()(Args... args) const { return call_(object_, std::forward<Args>(args)...); }

private:
    void* object_;
    Result (*call_)(void*, Args...);
};

/// Threads spin briefly for the next job, then sleep. The caller works too, so a pool of 1 starts no thread and costs
/// nothing. A call made while the pool is busy (from inside a job, or from another thread) runs at once on the calling
/// thread alone: nested and concurrent use are safe and never deadlock. The first exception thrown by a job is rethrown by
/// the call. After a fork() the child runs every job on the calling thread.
class ThreadPool {
public:
    /// threads: 1 and up; 0: one per core this process may run on.
    explicit ThreadPool(int threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int threads() const { return threads_; }
    /// job(worker, workers) once on each of `workers` threads, worker = 0 .. workers-1.
    void run(FunctionRef<void(int worker, int workers)> job);
    /// f(begin, end) over pieces of [0, count), each a multiple of `grain` but for the last. Every thread starts on a contiguous
    /// share of its own and, when done, takes from those of others.
    void parallel_for(int64_t count, int64_t grain, FunctionRef<void(int64_t begin, int64_t end)> f);

    /// Calls that were shared among threads so far: each is one fork and one join.
    uint64_t regions() const;

private:
    struct State;
    int threads_;
    std::unique_ptr<State> state_;
};

/// Cores that this process may run on (the affinity mask and the cgroup's share, whichever is less), at least 1.
int available_cores();

}  // namespace halfbyte
