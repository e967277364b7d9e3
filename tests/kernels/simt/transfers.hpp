// transfers: what the hardware does on its own, bulk copies and posted writes to the host, some time after it is asked to.
//
// Either happens now and then, or, in half of the launches, only when no thread of the launch can go on without.
#pragma once

#include "cuda.hpp"

namespace simt {

inline void complete(Arrival& arrival) {
    if (arrival.bytes != 0 || arrival.left != 0) return;
    arrival.left = 1;
    arrival.phase ^= 1;
}

inline void read(Transfer& transfer) {
    if (transfer.read) return;
    transfer.content.assign(transfer.source, transfer.source + transfer.bytes);
    transfer.read = true;
}

inline void write(Transfer& transfer) {
    read(transfer);
    if (transfer.written) return;
    std::memcpy(transfer.target, transfer.content.data(), transfer.bytes);
    transfer.written = true;
    if (transfer.arrival == nullptr) return;
    transfer.arrival->bytes -= transfer.bytes;
    complete(*transfer.arrival);
}

// Some bulk copies of a block get on, or one if no thread of the launch could. Whether any did.
inline bool move_transfers(Block& block, bool stuck) {
    auto& transfers = block.transfers;
    if (transfers.empty() || (launch->lazy && !stuck)) return false;
    const auto get_on = [](Transfer& transfer) { transfer.read ? write(transfer) : read(transfer); };
    bool moved = stuck;
    if (stuck) get_on(transfers[launch->draw(static_cast<unsigned>(transfers.size()))]);
    for (auto& transfer : transfers)
        if (!stuck && launch->draw(4) == 0) get_on(transfer), moved = true;
    std::erase_if(transfers, [](const Transfer& transfer) { return transfer.written; });
    return moved;
}

// The same for words on their way to the host, which wait for bulk copies in a lazy launch.
inline bool move_posted(bool stuck) {
    auto& posted = launch->posted;
    if (posted.empty() || (!stuck && (launch->lazy || launch->draw(4) != 0))) return false;
    for (unsigned some = 1 + launch->draw(static_cast<unsigned>(posted.size())); some > 0; --some) {
        std::swap(posted[launch->draw(static_cast<unsigned>(posted.size()))], posted.back());
        __atomic_store_n(posted.back().to, posted.back().word, __ATOMIC_RELAXED);
        posted.pop_back();
    }
    return true;
}

inline Arrival& arrival_at(std::uint32_t address) {
    if (address % 8) fail("a barrier that is not aligned to 8 bytes");
    return *reinterpret_cast<Arrival*>(shared_at(address, sizeof(Arrival)));
}

inline void begin_transfer(Transfer transfer) {
    const auto aligned = [](const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0; };
    if (!aligned(transfer.target) || !aligned(transfer.source) || transfer.bytes % 16 || transfer.bytes <= 0)
        fail("a bulk copy that is not aligned to 16 bytes, or of none");
    transfer.issuer = current;
    current->block->transfers.push_back(std::move(transfer));
}

template <typename Advance>
void wait_for_stores(Advance advance) {
    for (auto& transfer : current->block->transfers)
        if (transfer.issuer == current && transfer.committed) advance(transfer);
}

}  // namespace simt
