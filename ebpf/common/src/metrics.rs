//! What the programs count.

use crate::layout;

/// One processor's count for one [`Reason`](crate::Reason).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "user",
    derive(
        zerocopy::FromBytes,
        zerocopy::IntoBytes,
        zerocopy::Immutable,
        zerocopy::KnownLayout
    )
)]
pub struct Counter {
    /// Packets as the hook saw them: an aggregate counts once.
    pub packets: u64,
    /// Their bytes, from the link header on.
    pub bytes: u64,
}

layout!(Counter, 16);
