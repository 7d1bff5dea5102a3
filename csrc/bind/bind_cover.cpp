#include <stdexcept>

#include "bind/arrays.hpp"
#include "ops/adjacency.hpp"
#include "ops/cover.hpp"

namespace simkit {
namespace {

// bits [graphs, n, words] -> its graphs.
std::vector<Graph> graphs_of(const BitArray& bits) {
    check_graphs(bits);
    const std::int64_t n = bits.shape(1), words = bits.shape(2);
    std::vector<Graph> graphs;
    for (py::ssize_t t = 0; t < bits.shape(0); ++t) graphs.push_back({bits.data() + t * n * words, n, words});
    return graphs;
}

template <class Each>
struct GraphWorker {
    Each& each;
    void work(std::int64_t t) { each(static_cast<std::size_t>(t)); }
};

template <class Each>
void for_each_graph(const std::vector<Graph>& graphs, int threads, Each&& each) {
    py::gil_scoped_release release;
    for_each_tile(static_cast<std::int64_t>(graphs.size()), threads, interrupt_poll(),
                  [&] { return GraphWorker<Each>{each}; });
}

IndexArray indices(const std::vector<std::int64_t>& values) {
    return IndexArray(static_cast<py::ssize_t>(values.size()), values.data());
}

}  // namespace

void bind_cover(py::module_& m) {
    using namespace py::literals;
    m.def(
        "components",
        [](const BitArray& bits, int threads) {
            check_threads(threads);
            const std::vector<Graph> graphs = graphs_of(bits);
            IndexArray labels({bits.shape(0), bits.shape(1)});
            IndexArray edges(bits.shape(0));
            auto *label = labels.mutable_data(), *edge = edges.mutable_data();
            auto each = [&](std::size_t t) {
                edge[t] = components(graphs[t], label + static_cast<std::int64_t>(t) * graphs[t].n);
            };
            for_each_graph(graphs, threads, each);
            return py::make_tuple(labels, edges);
        },
        "bits"_a, py::kw_only(), "threads"_a);
    m.def(
        "cover",
        [](const BitArray& bits, int threads) {
            check_threads(threads);
            const std::vector<Graph> graphs = graphs_of(bits);
            std::vector<Cover> covers(graphs.size());
            auto each = [&](std::size_t t) { covers[t] = cover(graphs[t]); };
            for_each_graph(graphs, threads, each);
            py::list out;
            for (const Cover& found : covers)
                out.append(py::make_tuple(indices(found.centres), indices(found.packing), found.dual));
            return out;
        },
        "bits"_a, py::kw_only(), "threads"_a);
}

}  // namespace simkit
