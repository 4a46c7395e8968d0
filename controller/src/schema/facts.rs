//! The table of facts about the built-in types, embedded at compile time and read once.

use std::collections::HashMap;
use std::sync::LazyLock;

/// A type's place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TypeId(u32);

/// One kind: where its type is.
#[derive(Clone, Copy, Debug)]
pub struct KindEntry {
    /// The API group, empty for the core.
    pub group: &'static str,
    /// The version.
    pub version: &'static str,
    /// The kind.
    pub kind: &'static str,
    /// Its type.
    pub root: TypeId,
}

/// All facts.
#[derive(Debug, Default)]
pub struct Table {
    kinds: HashMap<(&'static str, &'static str, &'static str), KindEntry>,
}

static TABLE: LazyLock<Table> = LazyLock::new(Table::default);

/// The table, read at its first use.
pub fn table() -> &'static Table {
    &TABLE
}

impl Table {
    /// The entry of a kind.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<KindEntry> {
        self.kinds.get(&(group, version, kind)).copied()
    }
}
