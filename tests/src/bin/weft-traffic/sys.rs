//! The system calls that std and nix do not wrap.

use std::{
    io,
    net::UdpSocket,
    os::fd::{AsFd, AsRawFd},
    ptr,
};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::signal::{SigSet, Signal},
    unistd::Pid,
};

/// How many datagrams go through one system call.
pub(crate) const BATCH: usize = 64;

/// The longest datagram that is received in batches.
const DATAGRAM: usize = 2048;

/// Lets the calling thread, and those it starts from then on, run on one CPU only.
pub(crate) fn pin(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Gives the calling thread, and those it starts from then on, a real-time class, to keep other load out of a measurement.
pub(crate) fn real_time() -> io::Result<()> {
    let param = libc::sched_param { sched_priority: 10 };
    // SAFETY: `param` outlives the call, which only reads it.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const param) }).map(drop)
}

/// Blocks SIGTERM and SIGINT in the calling thread and those it starts, for [`await_termination`].
pub(crate) fn block_termination() -> io::Result<SigSet> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGINT);
    set.thread_block()?;
    Ok(set)
}

/// Waits for a signal of `set`.
pub(crate) fn await_termination(set: &SigSet) -> io::Result<Signal> {
    Ok(set.wait()?)
}

/// Sends the same datagram over a connected socket [`BATCH`] times in one call; how many went out.
pub(crate) fn send_batch(socket: &UdpSocket, payload: &[u8]) -> io::Result<usize> {
    let mut slice = libc::iovec {
        iov_base: payload.as_ptr().cast_mut().cast(),
        iov_len: payload.len(),
    };
    let mut messages = [empty_message(&raw mut slice); BATCH];
    // SAFETY: each message points to `slice`, and that to `payload`; both outlive the call, which only reads them.
    check_count(unsafe {
        libc::sendmmsg(
            socket.as_fd().as_raw_fd(),
            messages.as_mut_ptr(),
            BATCH as libc::c_uint,
            0,
        )
    })
}

/// Buffers to receive datagrams in batches.
pub(crate) struct Receiver {
    buffers: Box<[[u8; DATAGRAM]; BATCH]>,
}

impl Receiver {
    #[expect(clippy::large_stack_arrays, reason = "once, on a thread that has the room")]
    pub(crate) fn new() -> Self {
        Self {
            buffers: Box::new([[0; DATAGRAM]; BATCH]),
        }
    }

    /// Waits for a datagram and takes those that are there with it; how many.
    pub(crate) fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        self.take(socket, libc::MSG_WAITFORONE)
    }

    /// Takes the datagrams that are there, without waiting for one; how many.
    pub(crate) fn poll(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        self.take(socket, libc::MSG_DONTWAIT)
    }

    fn take(&mut self, socket: &UdpSocket, flags: libc::c_int) -> io::Result<usize> {
        let mut slices = self.buffers.each_mut().map(|buffer| libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: DATAGRAM,
        });
        let mut messages = slices.each_mut().map(|slice| empty_message(ptr::from_mut(slice)));
        // SAFETY: each message points to a slice of its own, and that to a buffer of its own with the length that the
        // slice says; all of them outlive the call.
        check_count(unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                messages.as_mut_ptr(),
                BATCH as libc::c_uint,
                flags,
                ptr::null_mut(),
            )
        })
    }
}

/// A message without address and control data that points to one slice.
fn empty_message(slice: *mut libc::iovec) -> libc::mmsghdr {
    libc::mmsghdr {
        msg_hdr: libc::msghdr {
            msg_name: ptr::null_mut(),
            msg_namelen: 0,
            msg_iov: slice,
            msg_iovlen: 1,
            msg_control: ptr::null_mut(),
            msg_controllen: 0,
            msg_flags: 0,
        },
        msg_len: 0,
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn check_count(result: libc::c_int) -> io::Result<usize> {
    Ok(usize::try_from(check(result)?).unwrap_or_default())
}
