// XXH64 (Yann Collet, doc/xxhash_spec.md of xxHash): a checksum at the speed of memory.
#include <cstdint>
#include <cstring>

#include "pm.h"

namespace {

constexpr uint64_t P1 = 0x9E3779B185EBCA87, P2 = 0xC2B2AE3D27D4EB4F, P3 = 0x165667B19E3779F9,
                   P4 = 0x85EBCA77C2B2AE63, P5 = 0x27D4EB2F165667C5;

inline uint64_t rotate(uint64_t value, int bits) { return value << bits | value >> (64 - bits); }

// The specification's numbers are little-endian, and so are all processors that this is built for.
template <typename T>
inline T load(const uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline uint64_t round_in(uint64_t lane, uint64_t input) {
  return rotate(lane + input * P2, 31) * P1;
}

}  // namespace

uint64_t pm_xxh64(const void* data, int64_t nbytes) {
  const uint8_t* at = static_cast<const uint8_t*>(data);
  const uint8_t* const end = at + nbytes;
  uint64_t hash = P5;
  if (nbytes >= 32) {
    uint64_t lanes[4] = {P1 + P2, P2, 0, 0 - P1};
    for (; end - at >= 32; at += 32)
      for (int i = 0; i < 4; ++i) lanes[i] = round_in(lanes[i], load<uint64_t>(at + 8 * i));
    hash = rotate(lanes[0], 1) + rotate(lanes[1], 7) + rotate(lanes[2], 12) + rotate(lanes[3], 18);
    for (const uint64_t lane : lanes) hash = (hash ^ round_in(0, lane)) * P1 + P4;
  }
  hash += static_cast<uint64_t>(nbytes);
  for (; end - at >= 8; at += 8)
    hash = rotate(hash ^ round_in(0, load<uint64_t>(at)), 27) * P1 + P4;
  if (end - at >= 4) {
    hash = rotate(hash ^ load<uint32_t>(at) * P1, 23) * P2 + P3;
    at += 4;
  }
  for (; at < end; ++at) hash = rotate(hash ^ *at * P5, 11) * P1;
  hash = (hash ^ hash >> 33) * P2;
  hash = (hash ^ hash >> 29) * P3;
  return hash ^ hash >> 32;
}
