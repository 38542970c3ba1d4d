//! Which instructions the kernels use.

use tract_onnx::tract_core::tract_linalg::isa;

/// A set of instructions that kernels exist for. Every set gives the same result on every machine and for any number of
/// threads; two sets differ in the last bits, because fused multiply-add rounds once where multiply and add round twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// What every machine of the architecture has: plain Rust that the compiler vectorises.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512F.
    Avx512,
}

impl Isa {
    /// The fastest set that this CPU has and that the process may use: what tract may use, so that its environment
    /// variable `TRACT_CPU_ISA` (`-avx512f,-avx2` and so on) pins both its kernels and these.
    pub fn native() -> Self {
        let allowed = isa::native();
        let has = |feature| allowed.has(feature);
        let sets = Self::available().iter().rev();
        let fastest = sets.copied().find(|set| match set {
            Self::Portable => true,
            Self::Avx2 => has(isa::Isa::X86_64Avx2) && has(isa::Isa::X86_64Fma),
            Self::Avx512 => has(isa::Isa::X86_64Avx512f),
        });
        fastest.unwrap_or(Self::Portable)
    }

    /// All sets that this CPU has, the slowest first.
    pub fn available() -> &'static [Self] {
        #[cfg(target_arch = "x86_64")]
        {
            let wide = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if wide && is_x86_feature_detected!("avx512f") {
                return &[Self::Portable, Self::Avx2, Self::Avx512];
            }
            if wide {
                return &[Self::Portable, Self::Avx2];
            }
        }
        &[Self::Portable]
    }

    /// The same set where this CPU has it, [`Isa::Portable`] elsewhere: kernels run what this returns and nothing else.
    #[must_use]
    pub fn checked(self) -> Self {
        if Self::available().contains(&self) {
            self
        } else {
            Self::Portable
        }
    }
}
