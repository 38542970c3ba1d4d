//! Sizes of channels-last pictures and of the windows that move over them.

/// Height, width and channels of one picture; element (y, x, c) lies at `(y * width + x) * channels + c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Values of a pixel.
    pub channels: usize,
}

impl Picture {
    /// Pixels.
    pub fn pixels(&self) -> usize {
        self.height * self.width
    }

    /// Values.
    pub fn len(&self) -> usize {
        self.pixels() * self.channels
    }

    /// So many of its form as one, each below the other.
    #[must_use]
    pub fn times(self, count: usize) -> Self {
        Self {
            height: self.height * count,
            ..self
        }
    }

    /// Whether it has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Pixels of zeros around a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Pads {
    /// Above.
    pub top: usize,
    /// On the left.
    pub left: usize,
    /// Below.
    pub bottom: usize,
    /// On the right.
    pub right: usize,
}

/// A window that moves over a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// Height and width.
    pub kernel: [usize; 2],
    /// Rows and columns from one place to the next.
    pub stride: [usize; 2],
    /// Zeros around the picture.
    pub pads: Pads,
}

impl Window {
    /// Whether every pixel is a window of its own.
    pub fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.stride == [1, 1] && self.pads == Pads::default()
    }

    /// Places of the window, as a picture of the same channels; none where the padded picture is smaller than the window.
    pub fn output(&self, picture: Picture) -> Picture {
        let places = |size: usize, pads: usize, axis: usize| {
            (size + pads)
                .checked_sub(self.kernel[axis])
                .map_or(0, |left| left / self.stride[axis] + 1)
        };
        Picture {
            height: places(picture.height, self.pads.top + self.pads.bottom, 0),
            width: places(picture.width, self.pads.left + self.pads.right, 1),
            channels: picture.channels,
        }
    }
}
