//! The static table (RFC 7541 appendix A): 61 fields that both ends know. It decides nothing.

/// A field, as name and value.
pub(super) type Field = (&'static [u8], &'static [u8]);

/// The fields; the first has index 1. Fields of the same name follow each other.
pub(super) const FIELDS: [Field; 61] = [
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
];

/// What the static table knows of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Name and value, at this index.
    Field(usize),
    /// The name, first at this index.
    Name(usize),
    /// Neither.
    Nothing,
}

/// Looks a field up.
pub(super) fn find(name: &[u8], value: &[u8]) -> Known {
    let named = |index: &usize| field(*index).is_some_and(|(found, _)| found == name);
    let Some(first) = of_length(name.len()).iter().copied().find(named) else {
        return Known::Nothing;
    };
    let same = (first..=FIELDS.len()).take_while(named);
    let exact = same
        .into_iter()
        .find(|index| field(*index).is_some_and(|(_, known)| known == value));
    exact.map_or(Known::Name(first), Known::Field)
}

/// The field at an index.
pub(super) fn field(index: usize) -> Option<Field> {
    FIELDS.get(index.checked_sub(1)?).copied()
}

/// The first index of each name of this many octets, so that a name is compared with few others.
const fn of_length(octets: usize) -> &'static [usize] {
    match octets {
        3 => &[21, 60],
        4 => &[33, 34, 37, 38, 45, 59],
        5 => &[4, 22, 50],
        6 => &[19, 32, 35, 54],
        7 => &[2, 6, 8, 36, 51, 52],
        8 => &[39, 42, 46],
        10 => &[1, 55, 58],
        11 => &[53],
        12 => &[31, 47],
        13 => &[18, 23, 24, 30, 41, 44],
        14 => &[15, 28],
        15 => &[16, 17],
        16 => &[26, 27, 29, 61],
        17 => &[40, 57],
        18 => &[48],
        19 => &[25, 43, 49],
        25 => &[56],
        27 => &[20],
        _ => &[],
    }
}
