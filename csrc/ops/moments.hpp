// Float64 moments of a stream of rows, enough for the exact debiased HSIC of every pair of layers in one pass.
//
// With z = (x - shift) * scale, a_i = |z_i|^2 per layer, the sums over rows of
//   z, a, a^2, a z (own layer), z^T z (own layer), and across sides: x^T y, a b, a y, b x.
// Derivation: HSIC_debiased needs tr, row sums and diagonals only through these (see simkit/streaming/moments.py).
// z is float64, or float32, rounded once from float64. Of float32 z only products of different columns are float32: of
// at most 128 rows in one running sum, and of one call (512 rows of a stream) before they are added to the float64
// sums. Everything else, squares on the diagonals and products with layers of at most kNarrow columns too, is a float64
// sum over the same float32 z.
//
// Where products may be float32, sums of the same products are formed in float64 too, as seen by a few vectors of signs
// g (probes): sum x_i (z_i . g) is what C g would be. How far C g lies from it tells by how much C is off.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/matrix_view.hpp"
#include "core/place.hpp"
#include "core/tiles.hpp"

namespace simkit {

constexpr std::int64_t kNarrow = 12;
constexpr std::int64_t kProbes = 4;  // vectors of signs of a layer

// The layers of one side, laid side by side: layer l is columns offsets[l]..offsets[l+1].
template <class T>
struct MomentSide {
    const T* z;       // [rows, p]
    const double* a;  // [rows, layers]
    std::int64_t p;
    std::vector<std::int64_t> offsets;
    double *sum_z, *sum_az;     // [p]
    double *sum_a, *sum_aa;     // [layers]
    std::vector<double*> gram;  // per layer [p_l, p_l], upper triangles; empty where `cross` holds them
    double* rounded;            // [p] squares of what was rounded; of float32 z
    const double* signs;        // [kProbes, p] +-1, where products may be float32; else nullptr
    double* probes;             // [kProbes, p] of the column's own layer; nullptr where `cross` holds them

    std::int64_t layers() const { return static_cast<std::int64_t>(offsets.size()) - 1; }
};

struct MomentCross {
    double* cross;   // [p_left, p_right]; one side alone: [p, p], upper triangle by tiles
    double* sum_ab;  // [layers_left, layers_right]
    double* sum_ay;  // [layers_left, p_right]
    double* sum_bx;  // [layers_right, p_left]; unused with one side alone
    double*
        probes;  // [layers_right, kProbes, p_left] where there are signs; alone: of the column's layer and later ones
};

// Rows of one side in the units of its sums.
template <class T>
struct MomentUnits {
    std::vector<MatrixView> layers;  // raw, side by side
    const double* shift;             // [p]
    const double* scale;             // [p], one value in a layer
    T* z;                            // [rows, p] out: (x - shift) * scale
    double* a;                       // [rows, layers] out: |z|^2 per layer
};

template <class T>
void moments_rows(const std::vector<MomentUnits<T>>& sides, int threads, const Poll& poll);

// Adds `rows` rows to the sums. right == nullptr: the left side with itself.
template <class T>
void moments_add(std::int64_t rows, const MomentSide<T>& left, const MomentSide<T>* right, const MomentCross& cross,
                 int threads, const Poll& poll);

// On a device. The sums go over other pieces, so the last bits differ; the same bits every time, however the rows come.
namespace cuda {

// Rows that are added at a time: blocks of so many decide the last bits, and nothing else does.
constexpr std::int64_t kMomentBlock = 512;

// The sums of a stream in the memory of a device, where they stay from call to call, with rows that wait for their
// block to fill (the stage) and rows in the units of the sums (z) that wait to be added. The columns of both sides lie
// side by side, P in all, of L layers in all.
//
// What comes to the host is what decides: the norms of the rows (16 L bytes a row), once for so many blocks as `z` has
// room for, and the few rows that are taken out. The sums that need no more than norms (of a, a^2, a b) are the
// caller's. `numbers` are the other sums in one piece:
//   sum_z [P], sum_az [P], sum_ay [layers_left, q], sum_bx [layers_right, p], cross [p, q], gram of every layer
// q being p, and the last three of sum_bx, gram and the lower triangle of cross missing, where the left side meets
// itself.
//
// `keep` and `add` return while the device works; everything else returns when it is done.
class DeviceMoments {
  public:
    // Widths of the layers; right is empty where the left side meets itself. z has room for `blocks` blocks. tensor:
    // products by tensor cores, which takes a device of capability 8.0.
    DeviceMoments(int device, const std::vector<std::int64_t>& left, const std::vector<std::int64_t>& right,
                  std::int64_t blocks, bool tensor);
    ~DeviceMoments();
    DeviceMoments(const DeviceMoments&) = delete;
    DeviceMoments& operator=(const DeviceMoments&) = delete;

    int device() const;
    std::int64_t columns() const, layers() const, room() const, count() const;  // P, L, rows of z, all numbers

    void set(const Place& place, const double* shift, const double* scale, const double* numbers);
    void numbers(const Place& place, double* numbers);

    // Rows of the stage: `count` rows of raw layers from `first` on, as float64, to row `at` of it; from and to the
    // host. The layers have been read when it returns: nothing keeps them as they are.
    void keep(const Place& place, const std::vector<MatrixView>& layers, std::int64_t first, std::int64_t count,
              std::int64_t at);
    void set_stage(const Place& place, const double* rows, std::int64_t count);
    void stage(const Place& place, double* rows, std::int64_t count);

    // z = the stage, where it is `staged`, and rows of raw layers from `first` on, `rows` in all, in the units of the
    // sums. norms [rows, 2, L]: |z|^2 and the largest |z|, of every layer.
    void rows(const Place& place, const std::vector<MatrixView>& layers, std::int64_t first, std::int64_t rows,
              bool staged, double* norms);
    // taken [number, P]: rows of z, which are zeros from then on.
    void take(const Place& place, const std::vector<std::int64_t>& rows, double* taken);
    // Rows z [count, P] with norms [count, 2, L] to behind the blocks: row room() is their first.
    void put(const Place& place, const double* z, const double* norms, std::int64_t count);
    void add(const Place& place, std::int64_t first, std::int64_t rows);

  private:
    struct Memory;
    std::unique_ptr<Memory> memory_;
};

}  // namespace cuda

}  // namespace simkit
