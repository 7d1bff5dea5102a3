#include <memory>
#include <mutex>

#include "cuda/candidates.hpp"
#include "cuda/device.cuh"

namespace simkit::cuda {
namespace {

template <class T>
class Held : public HeldCandidates {
  public:
    Held(const Place& place, const CandidateProblem<T>& problem, const CandidateRoom& room)
        : place_(place), search_(held_search<Machine>([&] { return Machine(place); }, problem, room)) {}

    // Freed where it lies; where the driver is gone already, so is the memory.
    ~Held() override {
        try {
            const Visit visit(place_.device);
            search_.reset();
        } catch (const std::runtime_error&) {
            static_cast<void>(search_.release());
        }
    }

    CandidateTotals sums(const std::vector<Index>& kept, const std::vector<Index>& candidates,
                         const CandidateLevels& levels, bool rows) override {
        const std::lock_guard<std::mutex> alone(mutex_);  // calls share their workspace
        return at_place(place_, Index{0}, [&](Machine& machine, Index) {
            return search_->sums(machine, kept, candidates, levels, rows);
        });
    }

    Index packed_bytes() const override { return search_->packed_bytes(); }

  private:
    Place place_;
    std::mutex mutex_;
    std::unique_ptr<CandidateSearch<Machine, T>> search_;
};

}  // namespace

template <class T>
std::unique_ptr<HeldCandidates> hold_candidates(const Place& place, const CandidateProblem<T>& problem,
                                                const CandidateRoom& room) {
    return std::make_unique<Held<T>>(place, problem, room);
}

template std::unique_ptr<HeldCandidates> hold_candidates<float>(const Place&, const CandidateProblem<float>&,
                                                                const CandidateRoom&);
template std::unique_ptr<HeldCandidates> hold_candidates<double>(const Place&, const CandidateProblem<double>&,
                                                                 const CandidateRoom&);

}  // namespace simkit::cuda
