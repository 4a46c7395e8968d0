//! Pods' network namespaces.
//!
//! A netns belongs to a thread. One thread of this module enters a pod's netns just to open a netlink socket or to
//! write a sysctl and comes back at once; the socket stays bound to the netns and is used from anywhere.

use std::{
    fmt,
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    process, thread,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::statfs::fstatfs,
};
use serde::{Deserialize, Serialize};
use std::sync::mpsc;

use super::netlink::{Netlink, NetlinkError};

/// `NSFS_MAGIC`.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// Why a netns could not be used.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The path cannot be opened.
    #[error("netns {0} cannot be opened")]
    Open(PathBuf, #[source] io::Error),
    /// The path is something else.
    #[error("{0} is no network namespace; give the path of one, such as /run/netns/NAME or /proc/PID/ns/net")]
    NotNetns(PathBuf),
    /// The path leads to the node's own netns.
    #[error("{0} is the node's own network namespace; a pod that shares it needs no attachment")]
    Own(PathBuf),
    /// The netns cannot be entered.
    #[error("netns {0} cannot be entered")]
    Enter(PathBuf, #[source] io::Error),
    /// A netlink socket cannot be opened in it.
    #[error("no netlink socket in netns {0}")]
    Socket(PathBuf, #[source] NetlinkError),
    /// A setting cannot be written.
    #[error("{1} cannot be set in netns {0}")]
    Sysctl(PathBuf, String, #[source] io::Error),
    /// The thread that enters is gone.
    #[error("the agent is stopping")]
    Stopping,
}

/// What tells one netns from all others that exist at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NetnsId {
    device: u64,
    inode: u64,
}

impl fmt::Display for NetnsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.device, self.inode)
    }
}

/// An open netns.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
    id: NetnsId,
}

impl Netns {
    /// Opens the netns at a path.
    ///
    /// # Errors
    /// [`NetnsError::NotNetns`] for what is no netns, a namespace of another kind included.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let open_failed = |error| NetnsError::Open(path.to_owned(), error);
        // A named pipe in that place must not hang the agent.
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(path)
            .map_err(open_failed)?;
        let filesystem = fstatfs(&file).map_err(|errno| open_failed(errno.into()))?;
        if filesystem.filesystem_type().0 as i64 != NSFS_MAGIC
            || namespace_kind(&file) != Some(libc::CLONE_NEWNET)
        {
            return Err(NetnsError::NotNetns(path.to_owned()));
        }
        let metadata = file.metadata().map_err(open_failed)?;
        let id = NetnsId {
            device: metadata.dev(),
            inode: metadata.ino(),
        };
        Ok(Self {
            file,
            path: path.to_owned(),
            id,
        })
    }

    /// The netns of the calling thread.
    pub fn current() -> Result<Self, NetnsError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// What tells it from all others.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The `CLONE_NEW…` flag of a namespace file.
fn namespace_kind(file: &File) -> Option<i32> {
    use std::os::fd::AsRawFd as _;
    /// `NS_GET_NSTYPE`.
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: the request takes no argument and only reads the kind of the open namespace file.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    (kind >= 0).then_some(kind)
}

fn open_netlink(netns: &Netns) -> Result<Netlink, NetnsError> {
    Netlink::open().map_err(|error| NetnsError::Socket(netns.path.clone(), error))
}

type Job = Box<dyn FnOnce(&Netns) + Send>;

/// The thread that enters pods' namespaces.
pub struct NetnsThread {
    jobs: mpsc::SyncSender<(Netns, Job)>,
    home: NetnsId,
}

impl NetnsThread {
    /// Starts the thread. Its home is the netns of the caller.
    pub fn start() -> Result<Self, NetnsError> {
        /// As many may wait as attachments are worked on at once.
        const BACKLOG: usize = 64;
        let home = Netns::current()?;
        let home_id = home.id();
        let (jobs, queue) = mpsc::sync_channel::<(Netns, Job)>(BACKLOG);
        thread::Builder::new()
            .name("netns".to_owned())
            .spawn(move || {
                for (netns, job) in queue {
                    job(&netns);
                    if let Err(error) = setns(&home, CloneFlags::CLONE_NEWNET) {
                        // A thread in a pod's netns would do the next pod's work there.
                        tracing::error!(%error, "cannot return to the node's netns");
                        process::abort();
                    }
                }
            })
            .map_err(|error| NetnsError::Open(PathBuf::from("/proc/thread-self/ns/net"), error))?;
        Ok(Self { jobs, home: home_id })
    }

    /// The node's own netns.
    pub fn home(&self) -> NetnsId {
        self.home
    }

    /// Opens a netns for a pod, which the node's own is not.
    pub fn open(&self, path: &Path) -> Result<Netns, NetnsError> {
        let netns = Netns::open(path)?;
        if netns.id() == self.home {
            Err(NetnsError::Own(path.to_owned()))
        } else {
            Ok(netns)
        }
    }

    /// Opens a netlink socket in a netns, which comes back with it.
    pub fn netlink(&self, netns: Netns) -> Result<(Netns, Netlink), NetnsError> {
        self.run(netns, open_netlink)
    }

    /// Opens a netlink socket in a netns, and says whether devices that are made in it come without IPv6.
    pub fn survey(&self, netns: Netns) -> Result<(Netns, Netlink, bool), NetnsError> {
        let (netns, (netlink, ipv6_is_off)) = self.run(netns, |netns| {
            // A kernel without IPv6 has no such file, and refuses the addresses later with its own words.
            let setting = std::fs::read("/proc/sys/net/ipv6/conf/default/disable_ipv6");
            let ipv6_is_off = setting.is_ok_and(|value| value.first() == Some(&b'1'));
            Ok((open_netlink(netns)?, ipv6_is_off))
        })?;
        Ok((netns, netlink, ipv6_is_off))
    }

    /// Writes a file under `/proc/sys` as the netns sees it.
    pub fn write_sysctl(&self, netns: Netns, name: &str, value: &str) -> Result<Netns, NetnsError> {
        let (name, value) = (name.to_owned(), value.to_owned());
        let (netns, ()) = self.run(netns, move |netns| {
            std::fs::write(Path::new("/proc/sys").join(&name), value)
                .map_err(|error| NetnsError::Sysctl(netns.path.clone(), name, error))
        })?;
        Ok(netns)
    }

    fn run<T: Send + 'static>(
        &self,
        netns: Netns,
        work: impl FnOnce(&Netns) -> Result<T, NetnsError> + Send + 'static,
    ) -> Result<(Netns, T), NetnsError> {
        let (reply, answer) = mpsc::sync_channel(1);
        let again = netns
            .file
            .try_clone()
            .map_err(|error| NetnsError::Open(netns.path.clone(), error))?;
        let entered = Netns {
            file: again,
            path: netns.path.clone(),
            id: netns.id,
        };
        let job: Job = Box::new(move |netns| {
            let result = match setns(netns, CloneFlags::CLONE_NEWNET) {
                Ok(()) => work(netns),
                Err(errno) => Err(NetnsError::Enter(netns.path.clone(), errno.into())),
            };
            let _ = reply.send(result);
        });
        self.jobs.send((entered, job)).map_err(|_| NetnsError::Stopping)?;
        let value = answer.recv().map_err(|_| NetnsError::Stopping)??;
        Ok((netns, value))
    }
}
