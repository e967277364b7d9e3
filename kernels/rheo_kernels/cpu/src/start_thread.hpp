// start_thread: starts a thread that takes no signals, or says in one sentence why it cannot.
#pragma once

#include <pthread.h>

#include <csignal>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

namespace rheo {

// Python's signal handlers belong on its own threads. `what` names the thread in the sentence.
template <class Function>
std::thread start_thread(const std::string& what, Function&& function) {
    struct Blocked {
        sigset_t before;
        Blocked() {
            sigset_t all;
            sigfillset(&all);
            pthread_sigmask(SIG_SETMASK, &all, &before);
        }
        ~Blocked() { pthread_sigmask(SIG_SETMASK, &before, nullptr); }
    } blocked;
    try {
        return std::thread(std::forward<Function>(function));
    } catch (const std::system_error& error) {
        throw std::runtime_error(what + " of CPU attention could not be started (" + error.code().message() +
                                 "); allowed: fewer threads, or higher limits of processes and memory");
    }
}

}  // namespace rheo
