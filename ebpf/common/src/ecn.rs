//! Explicit congestion notification through a tunnel (RFC 6040).

const NOT_ECT: u8 = 0b00;
const ECT_1: u8 = 0b01;
const CE: u8 = 0b11;
const MASK: u8 = 0b11;

/// The traffic class an inner packet has after its outer header is taken off: the outer's congestion mark survives.
///
/// `None` if the packet must be dropped: it met congestion, and its sender would not understand the mark.
#[inline(always)]
#[must_use]
pub const fn decapsulate(outer: u8, inner: u8) -> Option<u8> {
    match (outer & MASK, inner & MASK) {
        (CE, NOT_ECT) => None,
        (CE, _) => Some(inner | CE),
        (ECT_1, 0b10) => Some((inner & !MASK) | ECT_1),
        _ => Some(inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_table_of_rfc_6040() {
        // Rows: inner; columns: outer Not-ECT, ECT(0), ECT(1), CE.
        let table = [
            (0b00, [Some(0b00), Some(0b00), Some(0b00), None]),
            (0b10, [Some(0b10), Some(0b10), Some(0b01), Some(0b11)]),
            (0b01, [Some(0b01), Some(0b01), Some(0b01), Some(0b11)]),
            (0b11, [Some(0b11), Some(0b11), Some(0b11), Some(0b11)]),
        ];
        for (inner, row) in table {
            for (outer, want) in [0b00, 0b10, 0b01, 0b11].into_iter().zip(row) {
                assert_eq!(
                    decapsulate(outer, inner),
                    want,
                    "outer {outer:02b} inner {inner:02b}"
                );
            }
        }
    }

    #[test]
    fn keeps_the_inner_dscp() {
        assert_eq!(decapsulate(0b1010_1011, 0b0101_0110), Some(0b0101_0111));
    }
}
