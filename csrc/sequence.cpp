#include "sequence.h"

#include <algorithm>
#include <cstring>

#include "error.h"

namespace flyweight {
namespace {

constexpr int32_t kNewline = 10, kEot = 257;

// Letters, digits, underscore, or part of a character beyond ASCII: flyweight/model/patches.py.
bool letter(int32_t token) {
  return (token >= '0' && token <= '9') || (token >= 'A' && token <= 'Z') ||
         (token >= 'a' && token <= 'z') || token == '_' || (token >= 128 && token < 256);
}

}  // namespace

SequenceShape::SequenceShape(const Program& p, const Kernels& k, const Pool& pool)
    : program(&p), kernels(&k), pool_(pool) {
  for (const Op& op : p.ops) {
    if (op.kind == Kind::Pool) {
      words = op.ints[0] == 1;
      patch_size = op.ints[1];
      pooled_width = p.buffer(op.source()).width;
    } else if (op.kind == Kind::Spread) {
      spread_width = p.buffer(op.target()).width;
    } else if (op.kind == Kind::Matches) {
      match_lengths.insert(match_lengths.end(), op.ints.begin() + 1, op.ints.end());
    }
  }
  std::sort(match_lengths.begin(), match_lengths.end());
  match_lengths.erase(std::unique(match_lengths.begin(), match_lengths.end()),
                      match_lengths.end());
}

SequenceShape::Alone::Alone(const SequenceShape& shape) : shape_(shape) {
  shape.pool_.check_process();
  const auto me = std::this_thread::get_id();
  require(shape.holder_ != me, "this thread is in the middle of a run of this model; a signal "
          "handler may set a flag, and use the model later");
  shape.busy_.lock();
  shape.holder_ = me;
}

SequenceShape::Alone::~Alone() {
  shape_.holder_ = std::thread::id();
  shape_.busy_.unlock();
}

Sequence::Sequence(std::shared_ptr<const SequenceShape> shape,
                   std::shared_ptr<CacheAccount> account, Format cache,
                   std::vector<float> frequencies, float gain, float divisor)
    : format(cache), shape_(std::move(shape)), account_(std::move(account)) {
  const Program& p = *shape_->program;
  require(cache == Format::F32 || cache == Format::F16 || cache == Format::BF16 ||
              cache == Format::Q8_0,
          "a cache of type ", static_cast<uint32_t>(cache),
          " is not known; f32, f16, bf16 and q8_0 are");
  set_positions(std::move(frequencies), gain, divisor);
  block_ = std::min<int64_t>(kCacheBlock, (p.context + 15) / 16 * 16);
  for (const Slot& slot : p.slots) {
    size_t& bytes = block_bytes_[static_cast<int>(slot.rows)];
    const size_t stride = shape_->kernels->stored_bytes(cache, slot.head_dim);
    bytes = aligned(bytes);
    places_.push_back({bytes, stride});
    bytes += static_cast<size_t>(2 * slot.kv_heads * block_) * stride;
  }
  for (int64_t length : shape_->match_lengths) matches_.emplace_back(length);
  open_sum_.resize(static_cast<size_t>(shape_->pooled_width));
}

void Sequence::set_positions(std::vector<float> frequencies, float gain, float divisor) {
  const int64_t wanted = shape_->program->frequencies;
  require(static_cast<int64_t>(frequencies.size()) == wanted, "the model takes ", wanted,
          " frequencies, not ", frequencies.size());
  require(divisor > 0, "the slopes' divisor is ", divisor, "; more than 0 is wanted");
  frequencies_ = std::move(frequencies);
  gain_ = gain;
  divisor_ = divisor;
}

Sequence::~Sequence() { account_->used -= charged_; }

void Sequence::grow(int set, int64_t positions) {
  if (block_bytes_[set] == 0) return;
  auto& blocks = blocks_[set];
  const auto wanted = static_cast<size_t>((positions + block_ - 1) / block_);
  while (blocks.size() < wanted) {
    const size_t bytes = block_bytes_[set];
    if (account_->limit && account_->used + bytes > account_->limit) {
      throw Error(text("there is no room for ", length(), " more tokens in the caches: ",
                       account_->used >> 20, " MiB are used, ", account_->limit >> 20,
                       " MiB are allowed; free other sequences, or take a smaller cache type"));
    }
    blocks.emplace_back(bytes, "the cache", false, true);
    account_->used += bytes;
    charged_ += bytes;
  }
}

void Sequence::reserve(int64_t new_tokens) {
  const int64_t length = this->length() + new_tokens;
  // In blocks, so that decoding allocates once in many tokens.
  const auto rounded = static_cast<size_t>((length + kCacheBlock - 1) / kCacheBlock * kCacheBlock);
  tokens_.reserve(rounded);
  for (auto& match : matches_) match.reserve(tokens_, rounded);
  grow(0, length);
  if (shape_->patch_size == 0) return;
  // Any token may complete a patch.
  const int64_t most = patches() + new_tokens;
  const auto most_rounded = static_cast<size_t>((most + kCacheBlock - 1) / kCacheBlock * kCacheBlock);
  patch_ends_.reserve(most_rounded);
  spread_.resize(
      std::max(spread_.size(), most_rounded * static_cast<size_t>(shape_->spread_width)));
  grow(1, most);
}

void Sequence::append(int32_t token, int32_t* followers) {
  tokens_.push_back(token);
  for (size_t j = 0; j < matches_.size(); ++j) {
    const int64_t found = matches_[j].find_and_add(tokens_.data());
    followers[j] = found < 0 ? -1 : tokens_[static_cast<size_t>(found) + 1];
  }
}

Sequence::Cut Sequence::cut(int32_t token) {
  const bool eot = token == kEot;
  bool ends = eot;
  if (shape_->words && !tokens_.empty()) {
    const int32_t before = tokens_.back();
    ends = ends || (!letter(token) && letter(before)) ||
           (token == kNewline && before != kNewline);
  }
  // An <eot> is a patch of its own; bytes before it that no patch has taken belong to none.
  if (eot) fill_ = 0;
  const Cut cut{static_cast<int32_t>(fill_), fill_ == 0, ends || fill_ == shape_->patch_size - 1};
  fill_ = cut.ends ? 0 : fill_ + 1;
  if (cut.ends) patch_ends_.push_back(static_cast<int32_t>(length() + 1));
  return cut;
}

int64_t Sequence::truncate(int64_t length) {
  require(length >= 0, "a sequence cannot be cut to ", length, " tokens");
  if (length >= this->length()) return this->length();
  if (shape_->patch_size) {
    const auto after = std::upper_bound(patch_ends_.begin(), patch_ends_.end(),
                                        static_cast<int32_t>(length));
    length = after == patch_ends_.begin() ? 0 : after[-1];
    patch_ends_.erase(after, patch_ends_.end());
    fill_ = 0;
  }
  for (auto& match : matches_) match.truncate(tokens_.data(), static_cast<size_t>(length));
  tokens_.resize(static_cast<size_t>(length));
  for (int set = 0; set < 2; ++set) {
    const int64_t kept = (remembered(static_cast<Rows>(set)) + block_ - 1) / block_;
    while (static_cast<int64_t>(blocks_[set].size()) > kept) {
      blocks_[set].pop_back();
      account_->used -= block_bytes_[set];
      charged_ -= block_bytes_[set];
    }
  }
  return length;
}

std::shared_ptr<Sequence> Sequence::copy() const {
  auto other = std::make_shared<Sequence>(shape_, account_, format, frequencies_, gain_, divisor_);
  for (int set = 0; set < 2; ++set) {
    other->grow(set, remembered(static_cast<Rows>(set)));
    for (size_t i = 0; i < other->blocks_[set].size(); ++i) {
      std::memcpy(other->blocks_[set][i].data(), blocks_[set][i].data(), block_bytes_[set]);
    }
  }
  other->tokens_ = tokens_;
  other->patch_ends_ = patch_ends_;
  other->matches_ = matches_;
  other->open_sum_ = open_sum_;
  other->spread_ = spread_;
  other->fill_ = fill_;
  return other;
}

}  // namespace flyweight
