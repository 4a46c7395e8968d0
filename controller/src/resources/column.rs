//! The columns of tables.

/// A printed column of a resource's table.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// The heading.
    pub name: &'static str,
    /// `string`, `integer` or `date`.
    pub kind: &'static str,
    /// `name` for the column that names the object.
    pub format: &'static str,
    /// 0: always shown. 1: shown by wide output.
    pub priority: u8,
}

/// A column of text that is always shown.
pub(crate) const fn text(name: &'static str) -> Column {
    Column {
        name,
        kind: "string",
        format: "",
        priority: 0,
    }
}

/// A column of text for wide output.
pub(crate) const fn wide(name: &'static str) -> Column {
    Column {
        priority: 1,
        ..text(name)
    }
}

/// A column of numbers that is always shown.
pub(crate) const fn number(name: &'static str) -> Column {
    Column {
        kind: "integer",
        ..text(name)
    }
}

/// A column of yes and no that is always shown.
pub(crate) const fn boolean(name: &'static str) -> Column {
    Column {
        kind: "boolean",
        ..text(name)
    }
}

/// The column that names the object.
pub(crate) const NAME: Column = Column {
    format: "name",
    ..text("Name")
};

/// The columns of a kind without a printer.
pub(crate) const PLAIN_COLUMNS: &[Column] = &[
    NAME,
    Column {
        kind: "date",
        ..text("Created At")
    },
];
