//! The one filter that all host veths share.
//!
//! Each host veth's clsact qdisc names one ingress block, and the block holds one direct-action filter, so attaching a pod
//! costs a qdisc and no program, and replacing the program is one message for all pods. A tcx link on each veth would
//! wait for an RCU grace period under the RTNL lock, some ten milliseconds per pod.
//!
//! The netlink socket belongs to the netns of the calling thread.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use aya::programs::ProgramFd;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

// From linux/rtnetlink.h, linux/netlink.h, linux/pkt_cls.h.
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const TCM_IFINDEX_MAGIC_BLOCK: u32 = 0xffff_ffff;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
const ETH_P_ALL: u16 = 3;

const HEADER_LEN: usize = 16;
const TCMSG_LEN: usize = 20;

/// One filter per block, so handle and priority are fixed.
const HANDLE: u32 = 1;
const PRIORITY: u32 = 1;

/// Adds the filter unless there is one.
pub(super) fn ensure(block: u32, program: &ProgramFd, name: &str) -> io::Result<()> {
    let flags = NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK;
    match exchange(&filter_message(
        RTM_NEWTFILTER,
        flags,
        block,
        Some((program, name)),
    )) {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other.map(drop),
    }
}

/// Puts the filter in the place of whatever is there. Whether the block exists.
pub(super) fn replace(block: u32, program: &ProgramFd, name: &str) -> io::Result<bool> {
    let flags = NLM_F_CREATE | NLM_F_REPLACE | NLM_F_ACK;
    match exchange(&filter_message(
        RTM_NEWTFILTER,
        flags,
        block,
        Some((program, name)),
    )) {
        Err(e) if no_such_block(&e) => Ok(false),
        other => other.map(|_| true),
    }
}

/// Removes the filter; it or the block may be gone already.
pub(super) fn remove(block: u32) -> io::Result<()> {
    match exchange(&filter_message(RTM_DELTFILTER, NLM_F_ACK, block, None)) {
        Err(e) if no_such_block(&e) => Ok(()),
        other => other.map(drop),
    }
}

/// The id of the program in the filter; `None` without a filter or block.
pub(super) fn program_id(block: u32) -> io::Result<Option<u32>> {
    match exchange(&filter_message(RTM_GETTFILTER, 0, block, None)) {
        Err(e) if no_such_block(&e) => Ok(None),
        other => Ok(find_program_id(&other?)),
    }
}

/// The kernel says `EINVAL` for a block that nothing refers to, and `ENOENT` for one without the filter.
fn no_such_block(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT))
}

fn filter_message(kind: u16, flags: u16, block: u32, program: Option<(&ProgramFd, &str)>) -> Vec<u8> {
    let mut m = Vec::with_capacity(128);
    m.extend_from_slice(&[0; 4]); // the length, known at the end
    m.extend_from_slice(&kind.to_ne_bytes());
    m.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
    m.extend_from_slice(&1u32.to_ne_bytes());
    m.extend_from_slice(&[0; 4]);
    // struct tcmsg: family and padding, ifindex, handle, parent (here the block), info.
    m.extend_from_slice(&[0; 4]);
    m.extend_from_slice(&TCM_IFINDEX_MAGIC_BLOCK.to_ne_bytes());
    m.extend_from_slice(&HANDLE.to_ne_bytes());
    m.extend_from_slice(&block.to_ne_bytes());
    m.extend_from_slice(&((PRIORITY << 16) | u32::from(ETH_P_ALL.to_be())).to_ne_bytes());
    attribute(&mut m, TCA_KIND, b"bpf\0");
    if let Some((fd, name)) = program {
        let mut options = Vec::with_capacity(64);
        attribute(&mut options, TCA_BPF_FD, &fd.as_fd().as_raw_fd().to_ne_bytes());
        attribute(&mut options, TCA_BPF_NAME, &[name.as_bytes(), b"\0"].concat());
        attribute(
            &mut options,
            TCA_BPF_FLAGS,
            &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes(),
        );
        attribute(&mut m, TCA_OPTIONS, &options);
    }
    let len = (m.len() as u32).to_ne_bytes();
    m[..4].copy_from_slice(&len);
    m
}

fn attribute(m: &mut Vec<u8>, kind: u16, value: &[u8]) {
    m.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
    m.extend_from_slice(&kind.to_ne_bytes());
    m.extend_from_slice(value);
    m.resize(m.len().next_multiple_of(4), 0);
}

/// Sends one message and returns the first answer; an error answer becomes an error.
fn exchange(message: &[u8]) -> io::Result<Vec<u8>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(message, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let truncated = || io::Error::new(io::ErrorKind::InvalidData, "netlink answer is cut short");
    let kind = u16::from_ne_bytes(bytes(&answer, 4).ok_or_else(truncated)?);
    if kind == NLMSG_ERROR {
        let code = i32::from_ne_bytes(bytes(&answer, HEADER_LEN).ok_or_else(truncated)?);
        if code != 0 {
            return Err(io::Error::from_raw_os_error(-code));
        }
    }
    Ok(answer)
}

fn find_program_id(answer: &[u8]) -> Option<u32> {
    let options = find_attribute(answer.get(HEADER_LEN + TCMSG_LEN..)?, TCA_OPTIONS)?;
    Some(u32::from_ne_bytes(bytes(
        find_attribute(options, TCA_BPF_ID)?,
        0,
    )?))
}

fn find_attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    const NESTED: u16 = 0x8000;
    loop {
        let len = usize::from(u16::from_ne_bytes(bytes(rest, 0)?));
        let kind = u16::from_ne_bytes(bytes(rest, 2)?) & !NESTED;
        if kind == wanted {
            return rest.get(4..len);
        }
        rest = rest.get(len.max(4).next_multiple_of(4)..)?;
    }
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_behind_others_and_in_nests() {
        let mut options = Vec::new();
        attribute(&mut options, TCA_BPF_NAME, b"abc\0");
        attribute(&mut options, TCA_BPF_ID, &7u32.to_ne_bytes());
        let mut answer = vec![0; HEADER_LEN + TCMSG_LEN];
        attribute(&mut answer, TCA_KIND, b"bpf\0");
        attribute(&mut answer, TCA_OPTIONS, &options);
        assert_eq!(find_program_id(&answer), Some(7));
    }

    #[test]
    fn an_answer_cut_short_has_no_program() {
        let mut answer = vec![0; HEADER_LEN + TCMSG_LEN];
        attribute(&mut answer, TCA_OPTIONS, &[9, 0, 11, 0, 1]);
        for len in 0..answer.len() {
            assert_eq!(find_program_id(&answer[..len]), None);
        }
    }
}
