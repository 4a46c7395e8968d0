//! .

use std::sync::Arc;

use super::Context;

pub(crate) fn start(_context: &Arc<Context>) {}
