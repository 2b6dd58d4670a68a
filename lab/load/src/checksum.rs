use tally_counts::Fingerprint;

use super::workload::Workload;

/// The fingerprint of what was sent.
///
/// A hash an increment would cost more than sending it. As time moves on, only one bucket is open:
/// its sums are kept by key, and folded into the fingerprint when the next bucket begins.
pub(crate) struct Checksum {
    bucket_s: u32,
    sums: Vec<i64>,
    closed: Fingerprint,
}

impl Checksum {
    pub(crate) fn new(workload: &Workload) -> Checksum {
        Checksum { bucket_s: 0, sums: vec![0; workload.keys()], closed: Fingerprint::ZERO }
    }

    /// What is added from now on is of this bucket.
    pub(crate) fn open(&mut self, bucket_s: u32, workload: &Workload) {
        if bucket_s != self.bucket_s {
            self.close(workload);
            self.bucket_s = bucket_s;
        }
    }

    #[inline]
    pub(crate) fn add(&mut self, key: usize, delta: i64) {
        self.sums[key] += delta;
    }

    pub(crate) fn finish(mut self, workload: &Workload) -> Fingerprint {
        self.close(workload);
        self.closed
    }

    fn close(&mut self, workload: &Workload) {
        for (key, sum) in self.sums.iter_mut().enumerate().filter(|(_, sum)| **sum != 0) {
            let (namespace, name) = workload.name(key);
            self.closed += Fingerprint::of_row(namespace, name, self.bucket_s, *sum);
            *sum = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Distribution;

    #[test]
    fn the_checksum_is_the_fingerprint_of_every_increment() {
        let workload = Workload::new(20, 3, Distribution::Zipf, 5);
        let mut checksum = Checksum::new(&workload);
        let mut expected = Fingerprint::ZERO;
        for number in 0..1000u64 {
            let (key, delta, bucket) =
                (workload.pick(number), number as i64 % 3, 60 * (number / 100) as u32);
            checksum.open(bucket, &workload);
            checksum.add(key, delta);
            let (namespace, name) = workload.name(key);
            expected += Fingerprint::of_row(namespace, name, bucket, delta);
        }
        assert_eq!(checksum.finish(&workload), expected);
    }
}
