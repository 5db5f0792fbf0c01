// The few CUDA words that neuron.cu uses, in C++17, so that the kernels' own text (indexing, tails, time blocks, ballots)
// runs and is tested on a machine without a GPU, under the sanitizers too. Not a fast path: cpu.cpp is.
//
// A launch without ballots runs its threads one after the other. With ballots the 32 lanes of a warp are 32 operating
// system threads that meet at every ballot; a lane that ends while others wait is a divergence, and aborts.
#pragma once
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

namespace shim {

struct Dim { unsigned x, y = 1, z = 1; };

class Warp {
 public:
  static constexpr unsigned kLanes = 32;

  // Waits for all lanes; returns the bits they brought.
  unsigned meet(unsigned lane, bool bit, bool ended) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (arrived_ && ended != ended_) {
      std::fputs("shim: a lane ended while others of its warp wait at a ballot\n", stderr);
      std::abort();
    }
    ended_ = ended;
    bits_ |= (unsigned)bit << lane;
    if (++arrived_ == kLanes) {
      result_ = bits_;
      bits_ = arrived_ = 0;
      round_++;
      all_here_.notify_all();
    } else {
      const unsigned long long round = round_;
      all_here_.wait(lock, [&] { return round != round_; });
    }
    return result_;  // the next round cannot end before this lane has left: it needs all of them
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_here_;
  unsigned arrived_ = 0, bits_ = 0, result_ = 0;
  unsigned long long round_ = 0;
  bool ended_ = false;
};

inline thread_local Dim block_index{0}, thread_index{0}, block_size{1}, grid_size{1};
inline thread_local Warp* warp = nullptr;

template <class Kernel>
void run_thread(unsigned block, unsigned thread, unsigned blocks, unsigned threads, Kernel kernel) {
  block_index = {block};
  thread_index = {thread};
  block_size = {threads};
  grid_size = {blocks};
  kernel();
}

// kernel<<<blocks, threads>>>; threads is a multiple of 32.
template <class Kernel>
void launch(unsigned blocks, unsigned threads, bool ballots, Kernel kernel) {
  if (!ballots) {
    for (unsigned b = 0; b < blocks; b++)
      for (unsigned t = 0; t < threads; t++) run_thread(b, t, blocks, threads, kernel);
    return;
  }
  Warp one;  // warps take turns
  const auto run_lane = [&](unsigned lane) {
    warp = &one;
    for (unsigned b = 0; b < blocks; b++)
      for (unsigned first = 0; first < threads; first += Warp::kLanes) {
        run_thread(b, first + lane, blocks, threads, kernel);
        one.meet(lane, false, true);
      }
    warp = nullptr;
  };
  std::vector<std::thread> lanes;
  for (unsigned lane = 0; lane < Warp::kLanes; lane++) lanes.emplace_back(run_lane, lane);
  for (auto& lane : lanes) lane.join();
}

inline unsigned ballot(unsigned mask, bool predicate) {
  if (!warp || mask != ~0u) {
    std::fputs("shim: a ballot in a launch without ballots, or of a part of the warp\n", stderr);
    std::abort();
  }
  return warp->meet(thread_index.x % Warp::kLanes, predicate, false);
}

}  // namespace shim

#define blockIdx ::shim::block_index
#define threadIdx ::shim::thread_index
#define blockDim ::shim::block_size
#define gridDim ::shim::grid_size
#define __ballot_sync(mask, predicate) ::shim::ballot(mask, predicate)
