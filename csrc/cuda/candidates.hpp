// A problem of ops/candidates.hpp that stays on a machine (cuda/machine.hpp) while its units are left out, time and
// again.
#pragma once

#include <algorithm>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <utility>
#include <vector>

#include "cuda/candidate_tiles.hpp"
#include "cuda/candidate_value.hpp"
#include "cuda/machine.hpp"
#include "cuda/pair_sums.hpp"
#include "ops/candidates.hpp"

namespace simkit::cuda {

// How much is held and done at once. The sums depend on none of it.
struct CandidateSizes {
    Index strips, tiles;
    bool packed;       // L is held
    Index group;       // tiles at once
    Index candidates;  // at once

    static constexpr Index kNear = 4096, kLeast = 8, kMost = 64;

    template <class T>
    static CandidateSizes of(const CandidateProblem<T>& problem, const CandidateRoom& room) {
        CandidateSizes sizes{};
        sizes.strips = pieces(problem.n, PairTile::kWidth);
        sizes.tiles = sizes.strips * (sizes.strips + 1) / 2;
        const Index tile = PairTile::kCells * static_cast<Index>(sizeof(T));
        sizes.packed = sizes.tiles * tile <= room.packed;
        const Index each = sizes.packed ? tile : 2 * tile;  // starts, and L where it is formed again
        const Index wide = sizes.strips * PairTile::kWidth;
        const Index candidate = problem.n * (sizes.strips * static_cast<Index>(sizeof(T)) + 8) +
                                wide * static_cast<Index>(sizeof(T)) + 16 * sizes.tiles;
        // Tiles get half of the room, or what a single candidate leaves.
        sizes.group = smaller(sizes.tiles, larger(1, smaller(room.bytes / 2, room.bytes - candidate) / each));
        const Index left = larger(room.bytes - sizes.group * each, 0) / candidate;
        sizes.candidates = larger(1, smaller(room.candidates, left));
        return sizes;
    }

    // Candidates of a block: few where there are few tiles, that all multiprocessors have work until the end; many
    // otherwise, that a tile's pairs are read seldom.
    Index part(Index count) const { return larger(kLeast, smaller(kMost, group * count / kNear)); }
};

// What the programs read of a call: one array of integers, sent at once.
class CandidateLists {
  public:
    CandidateLists(const std::vector<Index>& offsets, const std::vector<Index>& kept) : offsets_(offsets) {
        for (Index unit : kept)
            for (Index row = offsets[unit]; row < offsets[unit + 1]; ++row) add(row);
        kept_rows_ = static_cast<Index>(all_.size());
    }

    // Those of some candidates, in parts of `part`; slices of up to `rows` rows and `batch` candidates.
    void part_up(const Index* candidates, Index count, Index part, int rows, int batch) {
        all_.resize(kept_rows_);
        std::vector<CandidateRow> list;
        std::vector<CandidateSlice> slices;
        begins_ = all_.size();
        parts_ = pieces(count, part);
        for (Index k = 0; k < count; ++k) {
            if (k % part == 0) add(static_cast<Index>(slices.size()));
            if (k % part == 0 || slices.back().rows >= rows || slices.back().count >= batch)
                slices.push_back(slice_at(list, k));
            const Index unit = candidates[k], begin = unit < 0 ? 0 : offsets_[unit];
            const Index end = unit < 0 ? 0 : offsets_[unit + 1], own = larger(1, end - begin);
            for (Index r = 0; r < own; ++r) {
                if (slices.back().rows >= rows) slices.push_back(slice_at(list, k));
                const int flags = (r == 0 ? CandidateRow::kFirst : 0) | (r + 1 == own ? CandidateRow::kLast : 0);
                list.push_back({to_int(unit < 0 ? -1 : begin + r), flags, to_int(begin), to_int(end)});
                ++slices.back().rows;
            }
            ++slices.back().count;
        }
        add(static_cast<Index>(slices.size()));
        rows_ = append(list);
        slices_ = append(slices);
    }

    // Integers that the lists of `count` candidates of at most `widest` rows take, beside p rows.
    static Index most(Index p, Index count, Index widest) {
        return p + count + 2 + 2 * kAligned + 2 * kAligned * count * widest;
    }

    std::vector<std::int32_t> all() const { return all_; }
    Index kept_rows() const { return kept_rows_; }
    Index parts() const { return parts_; }
    const std::int32_t* begins(const std::int32_t* at) const { return at + begins_; }
    const CandidateRow* rows(const std::int32_t* at) const { return reinterpret_cast<const CandidateRow*>(at + rows_); }
    const CandidateSlice* slices(const std::int32_t* at) const {
        return reinterpret_cast<const CandidateSlice*>(at + slices_);
    }

  private:
    static constexpr Index kAligned = 4;  // integers of 16 bytes

    static std::int32_t to_int(Index value) { return static_cast<std::int32_t>(value); }
    static CandidateSlice slice_at(const std::vector<CandidateRow>& list, Index first) {
        return {to_int(static_cast<Index>(list.size())), 0, to_int(first), 0};
    }
    void add(Index value) { all_.push_back(to_int(value)); }

    template <class Four>
    std::size_t append(const std::vector<Four>& list) {
        static_assert(sizeof(Four) == kAligned * sizeof(std::int32_t));
        all_.resize(static_cast<std::size_t>(pieces(static_cast<Index>(all_.size()), kAligned) * kAligned));
        const auto at = all_.size();
        const auto* values = reinterpret_cast<const std::int32_t*>(list.data());
        all_.insert(all_.end(), values, values + list.size() * kAligned);
        return at;
    }

    const std::vector<Index>& offsets_;
    std::vector<std::int32_t> all_;
    Index kept_rows_ = 0, parts_ = 0;
    std::size_t begins_ = 0, rows_ = 0, slices_ = 0;
};

// The machine may be another one in every call, of the same place. problem.z lies on it and stays the caller's;
// problem.centre stays until a `fetch`.
template <class M, class T>
class CandidateSearch {
  public:
    CandidateSearch(M& machine, const CandidateProblem<T>& problem, const CandidateRoom& room)
        : problem_(problem),
          sizes_(CandidateSizes::of(problem, room)),
          centre_(machine.template array<double>(n())),
          places_(machine.template array<TilePlace>(sizes_.tiles)),
          starts_(machine.template array<T>(sizes_.group * PairTile::kCells)),
          l_(machine.template array<T>((sizes_.packed ? sizes_.tiles : sizes_.group) * PairTile::kCells)),
          levels_(machine.template array<T>(sizes_.candidates * wide())),
          slots_(machine.template array<T>(sizes_.candidates * sizes_.strips * n())),
          sums_(machine.template array<double>(sizes_.candidates * 2 * sizes_.tiles)),
          rows_(machine.template array<double>(sizes_.candidates * n())),
          totals_(machine.template array<double>(sizes_.candidates * Join::kSums)),
          lists_(machine.template array<std::int32_t>(CandidateLists::most(p(), sizes_.candidates, widest()))) {
        if (problem.kernel == Kernel::polynomial && sizeof(T) == 4)
            throw std::invalid_argument("the polynomial kernel takes float64 on a device");
        if (p() > 2147483647) throw std::invalid_argument("the units have more features than a device counts");
        machine.send(centre_, problem.centre, n());
        machine.send(places_, machine.kept.keep(upper_tiles(sizes_.strips)), sizes_.tiles);
        problem_.centre = nullptr;
        if (sizes_.packed) form_l(machine, 0, sizes_.tiles);
    }

    Index packed_bytes() const {
        return sizes_.packed ? sizes_.tiles * PairTile::kCells * static_cast<Index>(sizeof(T)) : 0;
    }

    CandidateTotals sums(M& machine, const std::vector<Index>& kept, const std::vector<Index>& candidates,
                         const CandidateLevels& levels, bool with_rows) {
        const Index all = static_cast<Index>(candidates.size());
        CandidateTotals out;
        CandidateLists lists(problem_.offsets, kept);
        for (Index first = 0; first < all; first += sizes_.candidates) {
            const Index count = smaller(sizes_.candidates, all - first);
            if (first == 0 || levels.each) send_levels(machine, levels, first, count);
            evaluate(machine, lists, candidates.data() + first, count, levels, first == 0);
            machine.run(Join{slots_.data(), sums_.data(), n(), sizes_.strips, sizes_.tiles,
                             with_rows ? rows_.data() : nullptr, totals_.data()},
                        count);
            const auto totals = fetched<M, double>(machine, totals_, count * Join::kSums);
            for (Index k = 0; k < count * Join::kSums; ++k) out.list(k % Join::kSums).push_back(totals[k]);
            if (!with_rows) continue;
            const auto rows = fetched<M, double>(machine, rows_, count * n());
            out.rows.insert(out.rows.end(), rows.begin(), rows.end());
        }
        return out;
    }

  private:
    using Join = JoinCandidates<T>;

    Index n() const { return problem_.n; }
    Index p() const { return problem_.offsets.back(); }
    Index wide() const { return sizes_.strips * PairTile::kWidth; }
    Index widest() const {
        Index most = 1;
        for (std::size_t u = 1; u < problem_.offsets.size(); ++u)
            most = larger(most, problem_.offsets[u] - problem_.offsets[u - 1]);
        return most;
    }

    // fresh: nothing of these kept units was formed yet.
    void evaluate(M& machine, CandidateLists& lists, const Index* candidates, Index count,
                  const CandidateLevels& levels, bool fresh) {
        using Any = CandidateTiles<T, RbfNearOne<T>>;
        lists.part_up(candidates, count, sizes_.part(count), Any::kRows, Any::kBatch);
        std::vector<std::int32_t> all = lists.all();
        const auto size = static_cast<Index>(all.size());
        machine.send(lists_, machine.kept.keep(std::move(all)), size);
        for (Index first = 0; first < sizes_.tiles; first += sizes_.group) {
            const Index here = smaller(sizes_.group, sizes_.tiles - first);
            if (fresh || sizes_.group < sizes_.tiles) {
                form_starts(machine, lists, first, here);
                if (!sizes_.packed) form_l(machine, first, here);
            }
            with_value(levels.small, [&](const auto& value) {
                using Tiles = CandidateTiles<T, std::decay_t<decltype(value)>>;
                const std::int32_t* at = lists_.data();
                const T* l = l_.data() + (sizes_.packed ? first : 0) * PairTile::kCells;
                machine.run(Tiles{problem_.z,
                                  starts_.data(),
                                  l,
                                  at,
                                  n(),
                                  sizes_.strips,
                                  lists.kept_rows(),
                                  lists.rows(at),
                                  lists.slices(at),
                                  lists.begins(at),
                                  places_.data() + first,
                                  here,
                                  first,
                                  sizes_.tiles,
                                  !problem_.debiased,
                                  value,
                                  levels_.data(),
                                  levels.each ? wide() : Index{0},
                                  slots_.data(),
                                  sums_.data()},
                            here * lists.parts());
            });
        }
    }

    bool distance() const { return problem_.kernel != Kernel::polynomial; }

    void form_starts(M& machine, const CandidateLists& lists, Index first, Index count) {
        const auto run = [&](auto start) {
            constexpr bool distances = decltype(start)::kDistance;
            machine.run(PairTiles<T, distances, decltype(start)>{problem_.z, lists_.data(), n(), lists.kept_rows(),
                                                                 places_.data() + first, start, starts_.data()},
                        count);
        };
        if (distance()) return run(CandidateStart<T, true>{});
        if constexpr (sizeof(T) == 8) run(CandidateStart<T, false>{});
    }

    void form_l(M& machine, Index first, Index count) {
        using L = CentredValue<T>;
        const L value{problem_.kernel, problem_.length, problem_.coef0,
                      problem_.degree, centre_.data(),  problem_.small_centre};
        const TilePlace* places = places_.data() + first;
        if (distance())
            return machine.run(PairTiles<T, true, L>{problem_.z, nullptr, n(), p(), places, value, l_.data()}, count);
        if constexpr (sizeof(T) == 8)
            machine.run(PairTiles<T, false, L>{problem_.z, nullptr, n(), p(), places, value, l_.data()}, count);
    }

    template <class Call>
    void with_value(bool small, const Call& call) const {
        if constexpr (sizeof(T) == 8) {
            if (problem_.kernel == Kernel::polynomial)
                return call(PolynomialValue{problem_.length, problem_.coef0, problem_.degree});
        }
        const bool rbf = problem_.kernel == Kernel::rbf;
        if (small)
            rbf ? call(SmallRbf<T>{}) : call(SmallLaplacian<T>{});
        else
            rbf ? call(RbfNearOne<T>{}) : call(LaplacianNearOne<T>{});
    }

    // In T, rows of whole strips: of each of `count` candidates from `first` on, or of all.
    void send_levels(M& machine, const CandidateLevels& levels, Index first, Index count) {
        const Index rows = levels.each ? count : 1, own = levels.each ? first : 0;
        std::vector<T> all(static_cast<std::size_t>(rows * wide()));
        for (Index r = 0; r < rows; ++r)
            for (Index i = 0; i < n(); ++i) all[r * wide() + i] = static_cast<T>(levels.values[(own + r) * n() + i]);
        machine.send(levels_, machine.kept.keep(std::move(all)), rows * wide());
    }

    CandidateProblem<T> problem_;
    CandidateSizes sizes_;
    typename M::template Array<double> centre_;
    typename M::template Array<TilePlace> places_;
    typename M::template Array<T> starts_, l_, levels_, slots_;
    typename M::template Array<double> sums_, rows_, totals_;
    typename M::template Array<std::int32_t> lists_;
};

// A search on a machine that make() gives.
template <class M, class T, class Make>
std::unique_ptr<CandidateSearch<M, T>> held_search(const Make& make, const CandidateProblem<T>& problem,
                                                   const CandidateRoom& room) {
    constexpr Index small = Index{1} << 28;  // bytes, where memory is full; of less room one tile and one candidate
    bool again = false;
    return with_memory(make, room.bytes, [&](M& machine, Index) {
        const CandidateRoom less{room.candidates, 0, room.bytes > small ? small : 0};
        return std::make_unique<CandidateSearch<M, T>>(machine, problem, std::exchange(again, true) ? less : room);
    });
}

}  // namespace simkit::cuda
