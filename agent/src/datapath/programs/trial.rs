//! Made packets through the real programs, without a network: what would become of them, and what they would look like.

use std::borrow::Cow;

use aya::{
    Ebpf,
    programs::{SchedClassifier, TestRun, TestRunOptions},
};

use super::DataplaneError;

/// A place where a program sees packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// What pods send.
    FromContainer,
    /// What arrives on the underlay device.
    FromUnderlay,
    /// What arrives on the overlay device.
    FromOverlay,
    /// What leaves by the overlay device.
    ToOverlay,
}

impl Hook {
    /// The program's name.
    pub const fn program(self) -> &'static str {
        match self {
            Self::FromContainer => "from_container",
            Self::FromUnderlay => "from_underlay",
            Self::FromOverlay => "from_overlay",
            Self::ToOverlay => "to_overlay",
        }
    }
}

/// What a program decides about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Left to the next program and the stack.
    NotOurs,
    /// Passed on as it is.
    Pass,
    /// Dropped.
    Drop,
    /// Sent to another device.
    Redirect,
    /// None of those: the program is not ours.
    Other(i32),
}

impl From<u32> for Action {
    fn from(code: u32) -> Self {
        // The kernel's numbers: TC_ACT_UNSPEC, OK, SHOT and REDIRECT.
        match code.cast_signed() {
            -1 => Self::NotOurs,
            0 => Self::Pass,
            2 => Self::Drop,
            7 => Self::Redirect,
            other => Self::Other(other),
        }
    }
}

/// A packet to try.
#[derive(Clone, Debug)]
pub struct Trial<'a> {
    /// The frame from its Ethernet header on.
    pub frame: Cow<'a, [u8]>,
    /// The device it is on; the loopback device unless told.
    pub ifindex: u32,
    /// The size of segments, for an aggregate.
    pub segment_size: Option<u32>,
}

impl<'a> Trial<'a> {
    /// An ordinary packet.
    pub fn new(frame: impl Into<Cow<'a, [u8]>>) -> Self {
        Self {
            frame: frame.into(),
            ifindex: 1,
            segment_size: None,
        }
    }

    /// The fields of `struct __sk_buff` that the kernel takes from outside; all others must be zero.
    fn context(&self) -> [u8; 192] {
        const IFINDEX: usize = 40;
        const GSO_SEGS: usize = 164;
        const GSO_SIZE: usize = 176;
        let mut context = [0; 192];
        let mut put = |at: usize, value: u32| context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        put(IFINDEX, self.ifindex);
        if let Some(size) = self.segment_size {
            put(GSO_SIZE, size);
            put(GSO_SEGS, (self.frame.len() as u32).div_ceil(size.max(1)));
        }
        context
    }
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The program's decision.
    pub action: Action,
    /// The frame as the program left it.
    pub frame: Vec<u8>,
}

pub(in crate::datapath) fn run(
    ebpf: &mut Ebpf,
    hook: Hook,
    trial: &Trial<'_>,
) -> Result<Outcome, DataplaneError> {
    let name = hook.program();
    let program: &mut SchedClassifier = super::program(ebpf, name)?;
    let context = trial.context();
    // A tunnel header may come to it.
    let mut frame = vec![0; trial.frame.len() + 256];
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(&trial.frame),
            data_out: Some(&mut frame),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        })
        .map_err(|source| DataplaneError::Program {
            name,
            source: Box::new(source),
        })?;
    frame.truncate(result.data_size_out as usize);
    Ok(Outcome {
        action: result.return_value.into(),
        frame,
    })
}
