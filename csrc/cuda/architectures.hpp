// Which devices a build has code for.
#pragma once

#include <charconv>
#include <string_view>

namespace simkit::cuda {

// Whether code for `architectures`, in CMake's words ("80-real,90a-real,90-virtual"), runs on a device of `capability`
// (86: 8.6). Machine code runs on its own major version from its minor one on, PTX on all later ones, both at once
// where neither is named, and code for one device ("90a") on that one alone.
inline bool has_code_for(std::string_view architectures, int capability) {
    while (!architectures.empty()) {
        const std::string_view one = architectures.substr(0, architectures.find(','));
        architectures.remove_prefix(one.size() < architectures.size() ? one.size() + 1 : architectures.size());
        int built = 0;
        const auto [rest, error] = std::from_chars(one.data(), one.data() + one.size(), built);
        if (error != std::errc{}) return true;  // "native", "all": whoever built it knows for what
        const std::string_view suffix = one.substr(static_cast<std::size_t>(rest - one.data()));
        const bool machine_code = !suffix.ends_with("-virtual"), ptx = !suffix.ends_with("-real");
        if (capability == built) return true;
        if (suffix.starts_with('a') || capability < built) continue;
        if (ptx && !suffix.starts_with('f')) return true;
        if (machine_code && capability / 10 == built / 10) return true;
    }
    return false;
}

}  // namespace simkit::cuda
