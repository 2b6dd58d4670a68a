/// The text of a row's cell, which fingerprints hash:
/// `{len(namespace)}:{namespace}:{key}:{bucket}`, the length in bytes and the bucket in seconds,
/// both in decimal. [`RowText::SQL`] is the same in ClickHouse.
///
/// It keeps its buffer, and the decimals of the last bucket, which is usually the next row's too.
pub(crate) struct RowText {
    bytes: Vec<u8>,
    bucket: u32,
    decimals: itoa::Buffer,
    /// `:{bucket}` in its first `tail_len` bytes.
    tail: [u8; 16],
    tail_len: usize,
}

impl Default for RowText {
    fn default() -> RowText {
        let mut tail = [0; 16];
        tail[..2].copy_from_slice(b":0");
        RowText { bytes: Vec::new(), bucket: 0, decimals: itoa::Buffer::new(), tail, tail_len: 2 }
    }
}

impl RowText {
    /// The text in ClickHouse, over the counts table's columns.
    pub(crate) const SQL: &'static str = "concat(toString(length(namespace)), \
         ':', namespace, ':', key, ':', toString(toUInt32(bucket)))";

    #[inline]
    pub(crate) fn of(&mut self, namespace: &str, key: &str, bucket: u32) -> &[u8] {
        self.bytes.clear();
        self.append(namespace, key, bucket);
        &self.bytes
    }

    /// Appends a row's text.
    #[inline]
    fn append(&mut self, namespace: &str, key: &str, bucket: u32) {
        if bucket != self.bucket {
            self.turn_to(bucket);
        }
        self.bytes.extend_from_slice(self.decimals.format(namespace.len()).as_bytes());
        self.bytes.push(b':');
        self.bytes.extend_from_slice(namespace.as_bytes());
        self.bytes.push(b':');
        self.bytes.extend_from_slice(key.as_bytes());
        let len = self.bytes.len() + self.tail_len;
        // Sixteen bytes are one store; what is behind the bucket is not part of the text.
        self.bytes.extend_from_slice(&self.tail);
        self.bytes.truncate(len);
    }

    fn turn_to(&mut self, bucket: u32) {
        let decimals = self.decimals.format(bucket).as_bytes();
        self.tail[1..=decimals.len()].copy_from_slice(decimals);
        self.tail_len = 1 + decimals.len();
        self.bucket = bucket;
    }
}

/// The texts of a few rows, each with what is to be done with its hash. A text is hashed only a few
/// rows later: a processor that reads at once what it wrote in pieces waits until all that it wrote
/// before is out of its way.
#[derive(Default)]
pub(crate) struct RowTexts<T> {
    text: RowText,
    /// Where each row's text ends.
    rows: Vec<(usize, T)>,
}

impl<T> RowTexts<T> {
    const MOST: usize = 32;

    /// Adds a row, and says whether [`RowTexts::drain`] is due.
    #[inline]
    pub(crate) fn push(&mut self, namespace: &str, key: &str, bucket: u32, of_row: T) -> bool {
        self.text.append(namespace, key, bucket);
        self.rows.push((self.text.bytes.len(), of_row));
        self.rows.len() == Self::MOST
    }

    /// Hands out each row's text, and empties the list.
    #[inline]
    pub(crate) fn drain(&mut self, mut each: impl FnMut(&[u8], T)) {
        let mut begin = 0;
        for (end, of_row) in self.rows.drain(..) {
            each(&self.text.bytes[begin..end], of_row);
            begin = end;
        }
        self.text.bytes.clear();
    }
}
