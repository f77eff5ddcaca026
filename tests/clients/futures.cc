// SPDX-License-Identifier: MIT
//
// What of C++ waits by libstdc++'s own futex calls, each in memory from new: a future, a latch, a semaphore, a
// barrier, an atomic's wait, and a pool of threads that run packaged tasks. Between a wait and its wake time
// passes, in which the memory moves. Prints one line a kind; whoever is not woken keeps the program from ending.
#include <atomic>
#include <barrier>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <future>
#include <latch>
#include <memory>
#include <mutex>
#include <semaphore>
#include <thread>
#include <vector>

static void pause_ms(int ms)
{
	std::this_thread::sleep_for(std::chrono::milliseconds(ms));
}

static void check(bool condition, const char *what)
{
	if (condition)
		return;
	std::fprintf(stderr, "wrong: %s\n", what);
	std::exit(1);
}

static void futures(int pause)
{
	std::vector<std::promise<int>> promises(16);
	std::vector<std::thread> threads;
	std::atomic<int> sum{0};

	for (auto &promise : promises)
		threads.emplace_back([&promise, &sum] { sum += promise.get_future().get(); });
	pause_ms(pause);
	for (int i = 0; i < 16; i++)
		promises[static_cast<size_t>(i)].set_value(i);
	for (auto &thread : threads)
		thread.join();
	check(sum == 120, "future");
}

static void latches(int pause)
{
	auto latch = std::make_unique<std::latch>(1);
	auto done = std::make_unique<std::atomic<int>>(0);
	std::vector<std::thread> threads;

	for (int i = 0; i < 4; i++)
		threads.emplace_back([&] {
			latch->wait();
			++*done;
		});
	pause_ms(pause);
	latch->count_down();
	for (auto &thread : threads)
		thread.join();
	check(*done == 4, "latch");
}

static void semaphores(int pause)
{
	auto semaphore = std::make_unique<std::counting_semaphore<1000>>(0);
	std::vector<std::thread> threads;

	for (int i = 0; i < 4; i++)
		threads.emplace_back([&] { semaphore->acquire(); });
	pause_ms(pause);
	semaphore->release(4);
	for (auto &thread : threads)
		thread.join();
	check(!semaphore->try_acquire(), "semaphore");
}

static void barriers(int pause)
{
	auto barrier = std::make_unique<std::barrier<>>(4);
	std::vector<std::thread> threads;

	for (int i = 0; i < 4; i++)
		threads.emplace_back([&, i] {
			for (int round = 0; round < 3; round++) {
				if (i == round)
					pause_ms(pause);
				barrier->arrive_and_wait();
			}
		});
	for (auto &thread : threads)
		thread.join();
}

static void atomics(int pause)
{
	auto word = std::make_unique<std::atomic<int>>(0);      // a futex itself
	auto wide = std::make_unique<std::atomic<long long>>(0); // by a table of libstdc++'s
	std::thread first([&] { word->wait(0); });
	std::thread second([&] { wide->wait(0); });

	pause_ms(pause);
	*word = 1;
	word->notify_all();
	*wide = 1;
	wide->notify_all();
	first.join();
	second.join();
}

// A queue behind a mutex and a condition variable (private futexes of libc's), results by future.
class pool {
public:
	explicit pool(int count)
	{
		for (int i = 0; i < count; i++)
			threads.emplace_back([this] { work(); });
	}
	~pool()
	{
		{
			std::lock_guard<std::mutex> guard(lock);
			ending = true;
		}
		wake.notify_all();
		for (auto &thread : threads)
			thread.join();
	}
	std::future<long> add(std::function<long()> function)
	{
		std::packaged_task<long()> task(std::move(function));
		auto future = task.get_future();
		{
			std::lock_guard<std::mutex> guard(lock);
			tasks.push_back(std::move(task));
		}
		wake.notify_one();
		return future;
	}

private:
	void work()
	{
		for (;;) {
			std::unique_lock<std::mutex> guard(lock);
			wake.wait(guard, [this] { return ending || !tasks.empty(); });
			if (tasks.empty())
				return;
			auto task = std::move(tasks.front());
			tasks.pop_front();
			guard.unlock();
			task();
		}
	}
	std::mutex lock;
	std::condition_variable wake;
	std::deque<std::packaged_task<long()>> tasks;
	std::vector<std::thread> threads;
	bool ending = false;
};

static void pools(int pause)
{
	auto workers = std::make_unique<pool>(3);
	std::vector<std::future<long>> results;
	long sum = 0;

	for (long i = 0; i < 30; i++)
		results.push_back(workers->add([i, pause] {
			std::vector<long> mine(20000, i);
			pause_ms(pause / 10);
			return mine[static_cast<size_t>(i)];
		}));
	for (auto &result : results)
		sum += result.get();
	check(sum == 435, "packaged task");
}

int main(int argc, char **argv)
{
	const struct {
		const char *name;
		void (*run)(int pause);
	} kinds[] = { { "future", futures }, { "latch", latches },   { "semaphore", semaphores },
		      { "barrier", barriers }, { "atomic", atomics }, { "packaged task", pools } };
	int rounds = argc > 1 ? std::atoi(argv[1]) : 10;
	std::vector<char> heap(8 << 20, 1);

	for (auto &kind : kinds) {
		for (int round = 0; round < rounds; round++)
			kind.run(30);
		std::printf("%s\n", kind.name);
	}
	check(heap[heap.size() / 2] == 1, "heap");
	return 0;
}
